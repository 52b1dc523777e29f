"""Metrics in CloudWatch's embedded metric format: valid by its specification, and true to what was counted."""

import asyncio
import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from serve.api.statuses import INTERNAL_ERROR, STATUSES
from serve.core import Priority, ServerState
from serve.telemetry.cloudwatch import SERVER_FAULTS, CloudWatchRecorder, publishing
from serve.telemetry.emf import Document, Gauges, documents, line_writer
from serve.telemetry.nvml import Gpu
from serve.telemetry.recorder import ComputedBatch

QUIET = Gauges([0.0], [0.0], ready=1.0)
WITH_GPU = Gauges([3.0, 5.0], [0.0, 40.0], ready=1.0, gpu_memory_bytes=2.0e9, gpu_utilization=[0.5, 0.75])

_SIZES = (
    "Bytes",
    "Kilobytes",
    "Megabytes",
    "Gigabytes",
    "Terabytes",
    "Bits",
    "Kilobits",
    "Megabits",
    "Gigabits",
    "Terabits",
)
_PLAIN = {"Seconds", "Microseconds", "Milliseconds", "Percent", "Count", "None", "Count/Second"}
UNITS = {*_PLAIN, *(size.capitalize() + rate for size in _SIZES for rate in ("", "/Second"))}


def check_specification(document: Document) -> None:
    """The rules of AWS's "Specification: embedded metric format", each with its limit."""
    root = dict(document)
    metadata = root.pop("_aws")
    assert set(metadata) == {"Timestamp", "CloudWatchMetrics"}
    assert isinstance(metadata["Timestamp"], int)
    assert len(str(metadata["Timestamp"])) == 13, "milliseconds since 1970"
    for directive in metadata["CloudWatchMetrics"]:
        assert set(directive) == {"Namespace", "Dimensions", "Metrics"}
        assert re.fullmatch(r"[0-9A-Za-z.\-_/#:]{1,255}", directive["Namespace"])
        assert not directive["Namespace"].startswith("AWS/")
        for dimensions in directive["Dimensions"]:
            assert 1 <= len(dimensions) <= 30
            assert all(isinstance(root[name], str) and 1 <= len(root[name]) <= 1024 for name in dimensions)
        assert 1 <= len(directive["Metrics"]) <= 100
        for metric in directive["Metrics"]:
            assert set(metric) <= {"Name", "Unit", "StorageResolution"}
            assert metric["Unit"] in UNITS
            check_value(root[metric["Name"]])


def check_value(value: Any) -> None:
    numbers = value if isinstance(value, list | tuple) else [value]
    assert 1 <= len(numbers) <= 100
    assert all(isinstance(number, int | float) and abs(number) < 2**360 for number in numbers)


@pytest.fixture
def recorder() -> CloudWatchRecorder:
    return CloudWatchRecorder()


def made(recorder: CloudWatchRecorder, gauges: Gauges = QUIET) -> list[Document]:
    identity = {"namespace": "TabPFNServe", "service": "tabpfn-gpu", "timestamp_ms": 1_764_028_800_000}
    return list(documents(recorder.take(), gauges, **identity))  # type: ignore[arg-type]


def serve_some(recorder: CloudWatchRecorder) -> None:
    for seconds in (0.004, 0.006, 0.006, 0.04):
        recorder.answered("fraud", "ok", [seconds])
    for _ in range(2):
        recorder.refused("churn", "deadline")
        recorder.answered("churn", "overloaded", [0.0])
    recorder.answered("fraud", "engine_error", [0.1])
    recorder.answered("fraud", "wrong_type", [0.1])
    recorder.computed(ComputedBatch("fraud", 1, 1, 0.004, None, [0.002]))
    recorder.computed(ComputedBatch("fraud", 7, 3, 0.004, 1.0, [0.003, 0.003, 0.02]))


def test_documents_hold_to_the_specification(recorder: CloudWatchRecorder) -> None:
    serve_some(recorder)
    found = made(recorder, WITH_GPU)
    assert [(document["Service"], document.get("Model")) for document in found] == [
        ("tabpfn-gpu", None),
        ("tabpfn-gpu", "churn"),
        ("tabpfn-gpu", "fraud"),
    ]
    for document in found:
        check_specification(json.loads(json.dumps(document)))


def test_a_document_says_what_was_counted(recorder: CloudWatchRecorder) -> None:
    serve_some(recorder)
    service, churn, fraud = made(recorder, WITH_GPU)
    assert service["Requests"] == 8
    assert service["RefusedRequests"] == churn["RefusedRequests"] == 2
    assert service["Errors5xx"] == fraud["Errors5xx"] == 1
    assert service["OngoingRequests"] == [3.0, 5.0]
    assert service["GpuMemory"] == 2.0e9
    assert service["GpuUtilization"] == [50.0, 75.0]
    assert service["BatchRows"] == 4
    assert 4 < fraud["RequestP50"] < 7.5
    assert 30 < fraud["RequestP99"] <= 50
    assert "RequestP50" not in churn, "nothing was answered, and no data is not zero"


def test_only_the_interval_counts(recorder: CloudWatchRecorder) -> None:
    serve_some(recorder)
    made(recorder)
    (service,) = made(recorder)
    assert service["Requests"] == service["Errors5xx"] == 0
    assert "RequestP99" not in service
    assert not {"GpuMemory", "GpuUtilization"} & set(service)
    check_specification(service)


def test_what_is_beyond_the_buckets_has_the_highest_bound(recorder: CloudWatchRecorder) -> None:
    recorder.answered("fraud", "ok", [60.0])
    assert made(recorder)[0]["RequestP99"] == 10_000


def test_faults_are_what_callers_meet_as_5xx() -> None:
    assert {error.code for error, status in STATUSES.items() if status.http >= 500} | {INTERNAL_ERROR} == SERVER_FAULTS


def test_a_line_is_written_in_one_piece(recorder: CloudWatchRecorder) -> None:
    serve_some(recorder)
    full = Gauges([4096.0] * 30, [123_456.0] * 30, ready=1.0, gpu_memory_bytes=2.0e10, gpu_utilization=[0.57] * 30)
    for document in made(recorder, full):
        assert len(json.dumps(document)) < 4_096  # PIPE_BUF


class Queue:
    """Two requests wait and one is on the device."""

    num_queued_requests = 2
    num_in_flight_requests = 1

    def num_queued_rows(self, priority: Priority) -> int:
        return 5 if priority is Priority.BULK else 2


class PartOfGpu(Gpu):
    """A part of a GPU (MIG), of which the driver knows the memory but not the load."""

    def memory_used_bytes(self) -> float:
        return 3.0e9

    def utilization_ratio(self) -> float:
        return math.nan


async def test_it_publishes_each_interval_and_the_rest_at_the_end(recorder: CloudWatchRecorder) -> None:
    lines: list[str] = []
    written = asyncio.Event()
    loop = asyncio.get_running_loop()

    def write(text: str) -> None:
        lines.append(text)
        loop.call_soon_threadsafe(written.set)

    recorder.watch_queue(Queue())
    recorder.watch_gpu("cuda:0", PartOfGpu(None))
    recorder.state_changed(ServerState.READY)
    async with publishing(recorder, write, namespace="N", service="s", interval_s=0.05):
        await written.wait()
        serve_some(recorder)
    first, *_ = [json.loads(line) for line in lines[0].splitlines()]
    assert set(first["OngoingRequests"]) == {3.0}
    assert set(first["QueuedRows"]) == {7}
    assert first["Ready"] == 1.0
    assert first["GpuMemory"] == 3.0e9
    assert "GpuUtilization" not in first
    every = [json.loads(line) for line in "".join(lines).splitlines()]
    assert sum(document["Requests"] for document in every if "Model" not in document) == 8


async def test_a_broken_log_ends_no_server(recorder: CloudWatchRecorder, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: str) -> None:
        raise OSError("gone")

    async with publishing(recorder, refuse, namespace="N", service="s", interval_s=0.01):
        await asyncio.sleep(0.1)
    assert "no longer published to CloudWatch: gone" in caplog.text


async def test_nothing_is_published_unasked(recorder: CloudWatchRecorder) -> None:
    async with publishing(None, print), publishing(recorder, None):
        assert len(asyncio.all_tasks()) == 1


def test_a_worker_writes_into_the_launchers_output(capfd: pytest.CaptureFixture[str]) -> None:
    line_writer(None)('{"a":1}\n')
    assert capfd.readouterr().out == '{"a":1}\n'

    reading, launchers = os.pipe()  # what a container's standard output is
    code = f"""
from pathlib import Path
from serve.telemetry.emf import line_writer
line_writer(Path("/proc/{os.getpid()}/fd/{launchers}"))('{{"b":2}}\\n{{"c":3}}\\n')
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert os.read(reading, 100) == b'{"b":2}\n{"c":3}\n'
    os.close(reading)
    os.close(launchers)
