"""A setting names one number format; "auto" depends on the device alone."""

import pytest
import torch

from serve.engine import precision
from serve.engine.precision import forward_dtype


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_named_precision_is_taken_as_it_is(name: str, device: str) -> None:
    assert forward_dtype(name, torch.device(device), 1) is getattr(torch, name)


@pytest.mark.parametrize(
    ("is_fast", "num_parameters", "dtype"),
    [
        (True, precision.LARGE_PARAMETERS, torch.bfloat16),
        (True, precision.LARGE_PARAMETERS - 1, torch.float32),
        (False, precision.LARGE_PARAMETERS, torch.float32),
    ],
)
def test_auto_on_a_cpu_weighs_network_and_processor(
    monkeypatch: pytest.MonkeyPatch, is_fast: bool, num_parameters: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_fast)
    assert forward_dtype("auto", torch.device("cpu"), num_parameters) is dtype


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_asks_what_the_gpu_multiplies(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert forward_dtype("auto", torch.device("cuda:0"), 1) is dtype
