"""The layers of our forwards, each against the library's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tabpfn.architectures.tabpfn_v3_5 import SoftmaxScalingMLP, apply_rope

from serve.engine.forward.layers import LengthScale, Place, Rotation, attend

CPU = Place(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 8, 300])
def test_a_packed_product_is_the_product(num_rows: int, bias: bool) -> None:
    module, x = torch.nn.Linear(600, 512, bias=bias), torch.randn(2, num_rows, 600)
    linear = CPU.linear(module, (4, 128))
    assert linear.packed == torch.backends.mkldnn.is_available()
    torch.testing.assert_close(linear(x), module(x).view(2, num_rows, 4, 128), rtol=0, atol=1e-5)
    torch.testing.assert_close(linear(x[:, ::3]), module(x[:, ::3]).unflatten(-1, (4, 128)), rtol=0, atol=1e-5)
    assert not CPU.linear(torch.nn.Linear(8, 8)).packed


def test_queries_are_scaled_as_the_library_scales_them() -> None:
    module, queries = SoftmaxScalingMLP(4, 16, 32), torch.randn(2, 5, 4, 16)
    torch.nn.init.normal_(module.query_mlp[-1].weight)
    scaled = LengthScale(module, 4, 16, 700, CPU)(queries)
    torch.testing.assert_close(scaled, module(queries, 700) / 4, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(LengthScale(None, 4, 16, 700, CPU)(queries), queries / 4, rtol=0, atol=0)


def test_a_rotation_then_norm_is_the_librarys() -> None:
    norm, x = torch.nn.RMSNorm(16), torch.randn(3, 9, 4, 16)
    norm.weight.uniform_(0.5, 2.0)
    frequencies = 1 / 100_000 ** (torch.arange(0, 16, 2) / 16)
    angles = torch.arange(9.0)[:, None] * frequencies
    expected = norm(apply_rope(x.transpose(1, 2), frequencies).transpose(1, 2)) * 0.25
    torch.testing.assert_close(Rotation(norm, angles, 0.25, CPU)(x), expected, rtol=0, atol=1e-6)


def test_half_precision_attends_in_the_values_dtype() -> None:
    queries, keys, values = torch.randn(3, 2, 4, 7, 16).unbind()
    expected = torch.softmax(queries @ keys.transpose(-1, -2), dim=-1) @ values
    torch.testing.assert_close(attend(queries, keys, values), expected, rtol=0, atol=1e-6)
    narrow = attend(queries, keys.bfloat16(), values.bfloat16())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), expected, rtol=0, atol=0.05)
    assert Place(torch.device("cpu"), torch.float16).attention_dtype == torch.float32
