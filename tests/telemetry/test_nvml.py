"""What the driver says of a GPU reaches the metrics, whatever the driver says; without one nothing is told.

Here NVML's functions are replaced by a driver of three GPUs, since no machine of the tests has one; the test at the end
asks a real one.
"""

import math
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from predictor_harness import make

from serve.engine.fake import FakeEngine
from serve.telemetry.nvml import find_gpu
from serve.telemetry.prometheus import PrometheusRecorder


class Driver:
    """Three GPUs, the handles of which are their numbers; number n uses n GB and is busy for n tenths."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fault: int | None = None
        for name, answer in {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 3,
            "nvmlDeviceGetHandleByIndex": self.handle,
            "nvmlDeviceGetUUID": lambda gpu: f"GPU-{gpu}{gpu}{gpu}-5c",
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=self.told(gpu * 10**9)),
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=self.told(gpu * 10)),
        }.items():
            monkeypatch.setattr(pynvml, name, answer)

    def handle(self, index: int) -> int:
        if index not in range(3):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def told(self, value: int) -> int:
        if self.fault is not None:
            raise pynvml.NVMLError(self.fault)
        return value


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Driver(monkeypatch)


def observe_gpu(metrics: PrometheusRecorder, device: str) -> None:
    """As a replica does at its start."""
    if (gpu := find_gpu(device)) is not None:
        metrics.watch_gpu(device, gpu)


def readings(metrics: PrometheusRecorder) -> list[tuple[str, float]]:
    """(device, value), memory before load."""
    families: list[Any] = [*metrics.gpu_memory_used_bytes.collect(), *metrics.gpu_utilization_ratio.collect()]
    return [(sample.labels["device"], sample.value) for family in families for sample in family.samples]


def test_every_reading_asks_anew(driver: Driver, metrics: PrometheusRecorder) -> None:
    observe_gpu(metrics, "cuda:2")
    assert readings(metrics) == [("cuda:2", 2e9), ("cuda:2", 0.2)]
    driver.fault = pynvml.NVML_ERROR_GPU_IS_LOST
    assert all(math.isnan(value) for _, value in readings(metrics))
    assert b'tabpfn_gpu_memory_used_bytes{device="cuda:2"} NaN' in metrics.render()
    driver.fault = None
    assert readings(metrics) == [("cuda:2", 2e9), ("cuda:2", 0.2)]


@pytest.mark.parametrize(
    ("visible", "number"), [("2,1", 2), (" 1 , 0", 1), ("GPU-222-5c", 2), ("GPU-1", 1), ("GPU-11,GPU-22", 1)]
)
@pytest.mark.usefixtures("driver")
def test_the_gpu_is_the_one_that_cuda_counts(
    visible: str, number: int, metrics: PrometheusRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    observe_gpu(metrics, "cuda:0")
    assert readings(metrics)[0] == ("cuda:0", number * 1e9)


@pytest.mark.parametrize("visible", ["", "7", "GPU-9", "MIG-4", "GPU-1,", "-1"])
@pytest.mark.usefixtures("driver")
def test_a_gpu_that_is_not_found_is_a_warning(
    visible: str, metrics: PrometheusRecorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    device = "cuda:1" if visible.endswith(",") else "cuda:0"
    observe_gpu(metrics, device)
    assert readings(metrics) == []
    assert f"no metrics of {device}: " in caplog.text


def test_a_driver_that_does_not_know_its_gpu_is_a_warning(
    driver: Driver, metrics: PrometheusRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    driver.fault = pynvml.NVML_ERROR_NO_PERMISSION
    observe_gpu(metrics, "cuda:0")
    assert readings(metrics) == []
    assert "no metrics of cuda:0: " in caplog.text


@pytest.mark.usefixtures("driver")
async def test_a_replica_tells_of_the_gpu_of_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "device", "cuda:1")
    predictor = make()
    assert readings(predictor.telemetry.prometheus) == []
    await predictor.start()
    assert readings(predictor.telemetry.prometheus) == [("cuda:1", 1e9), ("cuda:1", 0.1)]
    await predictor.close()


def test_a_cpu_is_not_asked_for(
    metrics: PrometheusRecorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(pynvml, "nvmlInit")
    observe_gpu(metrics, "cpu")
    assert readings(metrics) == []
    assert not caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a driver")
def test_a_machine_without_a_driver_is_a_warning(metrics: PrometheusRecorder, caplog: pytest.LogCaptureFixture) -> None:
    observe_gpu(metrics, "cuda:0")
    assert readings(metrics) == []
    assert "no metrics of cuda:0: NVML Shared Library Not Found" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_driver_sees_what_torch_takes(metrics: PrometheusRecorder) -> None:
    observe_gpu(metrics, "cuda:0")
    (_, before), (_, load) = readings(metrics)
    taken = torch.empty(2**30, dtype=torch.uint8, device="cuda:0")
    (_, after), _ = readings(metrics)
    assert after - before >= taken.nbytes
    assert 0 <= load <= 1
