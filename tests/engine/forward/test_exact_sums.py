"""Products with float32 sums are used only where torch has them and they are right. The CPU has none of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from serve.engine.forward import exact_sums

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FORMATS = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def tried_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The trial of a GPU runs on the CPU."""
    trial = exact_sums._is_right
    monkeypatch.setattr(exact_sums, "_is_right", lambda _, dtype: trial(CPU, dtype))
    exact_sums.has_exact_sums.cache_clear()
    yield
    exact_sums.has_exact_sums.cache_clear()  # other tests have a pretend GPU


def by_other_means(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32 by other means, `scale` times as large."""
    monkeypatch.setattr(exact_sums, "multiply", lambda x, weight: scale * x.float() @ weight.float().t())
    monkeypatch.setattr(exact_sums, "multiply_batches", lambda x, weights: scale * x.float() @ weights.float())
    monkeypatch.setattr(exact_sums, "add_product", lambda total, x, weight: total.add_(x.float() @ weight.float().t()))


@pytest.mark.parametrize("dtype", FORMATS)
def test_where_torch_refuses_they_are_not_used(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    assert not exact_sums.has_exact_sums(GPU, dtype)
    assert "products with float32 sums failed" in caplog.text


@pytest.mark.parametrize("dtype", FORMATS)
def test_where_they_are_wrong_they_are_not_used(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    by_other_means(1.001, monkeypatch)
    assert not exact_sums.has_exact_sums(GPU, dtype)
    assert "products with float32 sums are wrong" in caplog.text


@pytest.mark.parametrize("dtype", FORMATS)
def test_where_they_are_right_they_are_used(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    by_other_means(1.0, monkeypatch)
    assert exact_sums.has_exact_sums(GPU, dtype)


@pytest.mark.parametrize(("device", "dtype"), [(CPU, torch.bfloat16), (GPU, torch.float32)])
def test_elsewhere_they_are_not_asked_for(device: torch.device, dtype: torch.dtype) -> None:
    assert not exact_sums.has_exact_sums(device, dtype)
