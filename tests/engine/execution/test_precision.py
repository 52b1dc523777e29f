"""Settings name number formats; "auto" depends on the device and the network's size alone."""

from pathlib import Path

import pytest
import torch
from models import definition
from pretend_cuda import pretend_cuda

from serve.engine.engine import TabPFNEngine
from serve.engine.execution.precision import LARGE_PARAMETERS, Precision, resolve_precision
from serve.settings import EngineSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
NAMES = ["float32", "bfloat16", "float16"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_named_precision_is_taken_as_it_is_and_the_kv_cache_follows(name: str, device: torch.device) -> None:
    dtype = getattr(torch, name)
    assert resolve_precision(name, "auto", device, 1) == Precision(dtype, dtype)
    assert resolve_precision("float32", name, device, 1) == Precision(torch.float32, dtype)


@pytest.mark.parametrize(
    ("is_fast", "num_parameters", "weights", "kv_cache"),
    [
        (True, LARGE_PARAMETERS, torch.bfloat16, torch.bfloat16),
        (True, LARGE_PARAMETERS - 1, torch.float32, torch.bfloat16),
        (False, LARGE_PARAMETERS, torch.float32, torch.float32),
    ],
)
def test_auto_on_a_cpu_weighs_network_and_processor(
    monkeypatch: pytest.MonkeyPatch, is_fast: bool, num_parameters: int, weights: torch.dtype, kv_cache: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_fast)
    assert resolve_precision("auto", "auto", CPU, num_parameters) == Precision(weights, kv_cache)
    assert resolve_precision("auto", "float32", CPU, num_parameters) == Precision(weights, torch.float32)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_asks_what_the_gpu_multiplies(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_precision("auto", "auto", GPU, 1) == Precision(dtype, dtype)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((9, 0), torch.bfloat16)])
def test_a_gpu_starts_in_16_bit_without_a_setting(
    checkpoint: Path, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    """The compiled answers are compared with tabpfn's in float32 at every start, within the tolerance of the format."""
    with pretend_cuda(capability):
        context = TabPFNEngine(EngineSettings(device="cuda:0"), 8).fit(definition(checkpoint, num_rows=60))
    assert context.backend == "compiled"
    assert context._precision == Precision(dtype, dtype)
