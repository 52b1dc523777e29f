"""The layers of the compiled forward passes, each against tabpfn's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tabpfn.architectures.tabpfn_v3_5 import SoftmaxScalingMLP, apply_rope

from serve.engine.forward import layers, products
from serve.engine.forward.layers import (
    ComputeSpec,
    FeedForward,
    LengthScale,
    TiledAttention,
    attend,
)
from serve.engine.forward.products import Product, add_tanh, gelu
from serve.engine.forward.rotary import RotaryProjection

CPU = ComputeSpec(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=[True, False], ids=["AMX", "no AMX"])
def amx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both choices of kernels, on any machine."""
    has_amx: bool = request.param
    for module in (layers, products):
        monkeypatch.setattr(module, "has_amx", lambda: has_amx)
    return has_amx


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 8, 300])
def test_a_packed_product_is_the_product(num_rows: int, bias: bool) -> None:
    module, x = torch.nn.Linear(600, 512, bias=bias), torch.randn(2, num_rows, 600)
    linear = CPU.linear(module, (4, 128))
    assert linear.packed == torch.backends.mkldnn.is_available()
    torch.testing.assert_close(linear(x), module(x).view(2, num_rows, 4, 128), rtol=0, atol=1e-5)
    torch.testing.assert_close(linear(x[:, ::3]), module(x[:, ::3]).unflatten(-1, (4, 128)), rtol=0, atol=1e-5)
    assert not CPU.linear(torch.nn.Linear(8, 8)).packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [24, 600])
@pytest.mark.parametrize("num_rows", [3, 400])
def test_a_product_is_the_product_by_any_kernel(num_rows: int, width: int, dtype: torch.dtype, amx: bool) -> None:
    weight, bias, x = torch.randn(512, width) / 5, torch.randn(512), torch.randn(2, num_rows, width)
    product = Product(weight.to(dtype))
    # MKL's and oneDNN's answers do not tell which one gave them
    is_by_onednn = width == 600 or (num_rows == 400 and not amx)
    assert product._is_by_onednn(x) == (is_by_onednn and torch.backends.mkldnn.is_available())
    exact = [t.to(dtype).double() for t in (x, weight, bias)]
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for given in (None, bias.to(dtype)):
        expected = exact[0] @ exact[1].T + (0 if given is None else exact[2])
        for answer, right in (
            (product(x, given), expected),
            (product.gelu(x, given), torch.nn.functional.gelu(expected)),
        ):
            assert answer.dtype == dtype
            torch.testing.assert_close(answer.double(), right, rtol=0.01, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "bias"), [(24, False), (24, True), (200, False), (600, False)])
def test_a_product_takes_over_a_norms_weights_and_is_added_in_place(width: int, bias: bool, dtype: torch.dtype) -> None:
    module, norm, total = torch.nn.Linear(width, 512, bias=bias), torch.nn.RMSNorm(width), torch.randn(3, 2, 512)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, width).transpose(0, 1)
    linear = ComputeSpec(CPU.device, dtype).linear(module, norm=norm)
    expected, tolerance = total + module(x * norm.weight), 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(total + linear(x), expected, rtol=0, atol=tolerance)
    assert linear.add_to(total, x) is total
    torch.testing.assert_close(total, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 500])
def test_feed_forward_and_gelu_of_few_and_of_many_numbers(rows: int) -> None:
    x = torch.linspace(-8, 8, 32 * rows).view(rows, 32)
    torch.testing.assert_close(gelu(x.clone()), torch.nn.functional.gelu(x), rtol=0, atol=1e-6)
    norm = torch.nn.RMSNorm(32)
    torch.nn.init.normal_(norm.weight)
    mlp = torch.nn.Sequential(torch.nn.Linear(32, 64, bias=False), torch.nn.GELU(), torch.nn.Linear(64, 32, bias=False))
    expected = x + mlp(norm(x))
    torch.testing.assert_close(FeedForward(norm, mlp, CPU)(x.clone()), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("size", [900, 9_000])
def test_one_and_a_tanh(size: int) -> None:
    x, y = torch.randn(size), torch.linspace(-100, 100, size)
    expected = x.double() * (1 + torch.tanh(y.double()))
    torch.testing.assert_close(add_tanh(x.clone(), y.clone()).double(), expected, rtol=1e-6, atol=1e-6)


def test_queries_are_scaled_as_tabpfn_scales_them() -> None:
    module, queries = SoftmaxScalingMLP(4, 16, 32), torch.randn(2, 5, 4, 16)
    torch.nn.init.normal_(module.query_mlp[-1].weight)
    scaled = LengthScale(module, 4, 16, 700, CPU)(queries)
    torch.testing.assert_close(scaled, module(queries, 700) / 4, rtol=1e-6, atol=1e-6)
    gain = torch.randn(16)
    regained = LengthScale(module, 4, 16, 700, CPU, gain)(queries / gain)
    torch.testing.assert_close(regained, scaled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(LengthScale(None, 4, 16, 700, CPU)(queries), queries / 4, rtol=0, atol=0)


@pytest.mark.parametrize("is_normed", [True, False])
def test_heads_are_turned_by_position_then_normed(is_normed: bool) -> None:
    module, x = torch.nn.Linear(24, 32, bias=False), torch.randn(9, 5, 24)  # tokens first
    norm, before, gain = torch.nn.RMSNorm(16, eps=1e-6), torch.nn.RMSNorm(24), torch.randn(16)
    torch.nn.init.normal_(before.weight)
    frequencies = 1 / 100_000 ** (torch.arange(0, 16, 2) / 16)
    angles = torch.arange(9.0)[:, None] * frequencies
    by_head = module(x * before.weight).unflatten(-1, (2, 16)).permute(1, 2, 0, 3)
    expected = apply_rope(by_head, frequencies).permute(2, 0, 1, 3)
    expected = (norm(expected) if is_normed else expected) * gain
    turned = RotaryProjection(module, norm if is_normed else None, angles, (2, 16), CPU, before, gain)
    torch.testing.assert_close(turned(x), expected, rtol=1e-5, atol=1e-6)
    assert turned(1e6 * x).norm(dim=-1).max() <= turned.max_length * (1 + 1e-5)


@pytest.mark.parametrize("has_tanh", [True, False])
def test_no_scaled_query_scores_beyond_its_reach(has_tanh: bool) -> None:
    module, norm = SoftmaxScalingMLP(4, 16, 32), torch.nn.RMSNorm(16, eps=1e-6)
    for weight in (module.query_mlp[-1].weight, norm.weight):
        torch.nn.init.normal_(weight, std=5)
    scale = LengthScale(module if has_tanh else None, 4, 16, 700, CPU, norm.weight)
    queries, keys = scale(norm(torch.randn(2_000, 4, 16)) / norm.weight), torch.randn(50, 1, 16)
    scores = torch.einsum("qhd,kd->khq", queries, keys[:, 0]).abs().amax(-1)  # [keys, heads]
    bounds = (keys * scale.query_bound).norm(dim=-1)
    assert torch.all(scores <= bounds)
    assert torch.all(0.1 * bounds < scores)


@pytest.mark.parametrize("length", [0.5, 50.0])
def test_attention_to_a_context_is_the_same_bounded_or_not(length: float, amx: bool) -> None:
    queries, keys, values = torch.randn(2, 3, 40, 16), torch.randn(2, 90, 3, 16), torch.randn(2, 90, 3, 16)
    queries = torch.nn.functional.normalize(queries, dim=-1) * length
    query_bound = torch.full((3, 1, 16), length)
    attention = CPU.attend_to(keys, values, query_bound)
    expected = torch.softmax(queries @ keys.permute(0, 2, 3, 1), dim=-1) @ values.transpose(1, 2)
    torch.testing.assert_close(attention(queries), expected, rtol=1e-5, atol=1e-5)
    narrow = ComputeSpec(CPU.device, torch.float32, torch.bfloat16).attend_to(keys, values, query_bound)
    assert isinstance(narrow, TiledAttention) != amx
    assert narrow(queries).dtype == torch.bfloat16
    torch.testing.assert_close(narrow(queries).float(), expected, rtol=0, atol=0.1 if length < 1 else 1.5)


def test_narrow_layers_stay_in_float32_on_a_cpu(amx: bool) -> None:
    spec = ComputeSpec(CPU.device, torch.bfloat16)
    assert spec.linear(torch.nn.Linear(16, 256))(torch.randn(3, 16)).dtype == torch.float32
    narrow = torch.float32 if amx else torch.bfloat16
    assert spec.linear(torch.nn.Linear(64, 256))(torch.randn(3, 64)).dtype == narrow
    assert spec.linear(torch.nn.Linear(256, 256))(torch.randn(3, 256)).dtype == torch.bfloat16
    assert ComputeSpec(torch.device("cuda"), torch.bfloat16).weight_dtype(torch.empty(64, 256)) == torch.bfloat16


def test_half_precision_attends_in_the_values_dtype() -> None:
    queries, keys, values = torch.randn(3, 2, 4, 7, 16).unbind()
    expected = torch.softmax(queries @ keys.transpose(-1, -2), dim=-1) @ values
    torch.testing.assert_close(attend(queries, keys, values), expected, rtol=0, atol=1e-6)
    narrow = attend(queries, keys.bfloat16(), values.bfloat16())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), expected, rtol=0, atol=0.05)
    assert ComputeSpec(torch.device("cpu"), torch.float16).attention_dtype == torch.float32
    assert ComputeSpec(torch.device("cpu"), torch.float32, torch.bfloat16).attention_dtype == torch.bfloat16
