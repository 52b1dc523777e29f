"""A recording answers as what it was made of, to the bit, at every shape that it was made for."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from pretend_cuda import Launch, pretend_cuda

from serve.engine.execution import recorded as graphs
from serve.engine.execution.recorded import RecordedCompute, TracedCompute
from serve.engine.forward import products
from serve.engine.forward.products import Product


class Counted:
    """Sums of rows over groups; counts the calls in which Python ran."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        self.num_calls += 1
        parts = [torch.softmax(x, dim=-1) * x.shape[1] for x in inputs]
        for part in parts:
            part[:, : part.shape[1] // 2].mul_(2)
        return torch.cat([part.sum(1) for part in parts])


def test_a_shape_is_traced_once_and_answers_alike() -> None:
    compute, plain = Counted(), Counted()
    traced = TracedCompute(compute)
    with torch.inference_mode():
        for num_rows in (5, 2, 5, 2, 5):
            inputs = [torch.randn(members, num_rows, 7) for members in (3, 1)]
            kept = [x.clone() for x in inputs]
            torch.testing.assert_close(traced(inputs), plain(inputs), rtol=0, atol=0)
            torch.testing.assert_close(inputs, kept, rtol=0, atol=0)
    assert compute.num_calls <= 2 * 3, "twice plainly at most, and for the trace"
    calls = compute.num_calls
    with torch.inference_mode():
        first, second = traced(inputs), traced([x + 1 for x in inputs])
    assert compute.num_calls == calls
    assert not torch.equal(first, second), "an answer outlives the next call"


def test_what_is_slow_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_TRACED_S", 0.0)
    compute = Counted()
    traced = TracedCompute(compute)
    inputs = [torch.randn(3, 2, 7)]
    traced(inputs)
    calls = compute.num_calls
    torch.testing.assert_close(traced(inputs), Counted()(inputs), rtol=0, atol=0)
    assert compute.num_calls == calls + 1


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN packs nothing")
@pytest.mark.parametrize(("shape", "num_rows"), [((512, 600), 3), ((64, 192), 4_096)], ids=["packed", "many rows"])
def test_products_by_onednn_are_called_plainly_without_a_warning(
    shape: tuple[int, int], num_rows: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A trace cannot hold them, and an operator can do nothing about it."""
    monkeypatch.setattr(graphs, "_TRACED_S", 60.0)  # on a busy machine, too, a trace is tried
    monkeypatch.setattr(products, "has_amx", lambda: False)
    product = Product(torch.randn(shape))
    assert product.packed == (num_rows == 3)
    x = torch.randn(1, num_rows, shape[1])
    traced = TracedCompute(lambda inputs: product(inputs[0]))
    with caplog.at_level(logging.DEBUG, graphs.__name__), torch.inference_mode():
        for given in (x, x + 1, x):
            torch.testing.assert_close(traced([given]), product(given), rtol=0, atol=0)
    [record] = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.getMessage().startswith(f"a forward pass of {num_rows} rows runs without a trace: ")


def test_what_else_cannot_be_traced_is_called_plainly_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs, "_TRACED_S", 60.0)

    def compute(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("an operator of tomorrow")
        return inputs[0] + 1

    x = torch.randn(1, 3, 2)
    traced = TracedCompute(compute)
    for _ in range(2):
        torch.testing.assert_close(traced([x]), x + 1, rtol=0, atol=0)
    assert caplog.messages == ["a forward pass of 3 rows runs without a trace: an operator of tomorrow"]


# --- CUDA graphs


def inputs_of(num_rows: int, device: str = "cuda:0") -> list[torch.Tensor]:
    return [torch.randn(members, num_rows, 7).to(device) for members in (3, 1)]


def assert_answers(recorded: RecordedCompute, inputs: Sequence[torch.Tensor]) -> None:
    torch.testing.assert_close(recorded(inputs).cpu(), Counted()([x.cpu() for x in inputs]), rtol=0, atol=0)


def test_a_shape_is_captured_once_and_answers_alike() -> None:
    with pretend_cuda() as device, torch.inference_mode():
        for gpu in ("cuda:0", "cuda:1"):
            compute = Counted()
            recorded, before = RecordedCompute(compute), len(device.launches)
            torch.cuda.set_device(gpu)
            for num_rows in (5, 2, 5, 2):
                assert_answers(recorded, inputs_of(num_rows, gpu))
            assert compute.num_calls == 2 * 4, "three runs, and the capture"
            assert [launch.name for launch in device.launches[before:]].count("graph") == 4
            assert recorded.num_unrecorded == 0


class AsksForTwo(Counted):
    """Asks the device for a value where there are two rows."""

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        if inputs[0].shape[1] == 2:
            inputs[0].sum().item()
        return super().__call__(inputs)


def test_a_shape_whose_capture_fails_is_computed_plainly_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    recorded = RecordedCompute(AsksForTwo())
    with pretend_cuda() as device, torch.inference_mode():
        stream = torch.cuda.current_stream()
        for num_rows in (5, 2, 3, 5, 2, 3):
            assert_answers(recorded, inputs_of(num_rows))
            assert torch.cuda.current_stream() is stream
        assert [launch.name for launch in device.launches].count("graph") == 4
    assert recorded.num_unrecorded == 1
    [line] = caplog.messages
    assert line.startswith("a forward pass of 2 rows runs without a CUDA graph, which is slower: CUDA error: operation")


@pytest.mark.parametrize("ends_badly", [False, True], ids=["alone", "behind the end of the capture"])
@pytest.mark.parametrize(
    "fault",
    [torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error: unspecified launch failure")],
)
def test_a_capture_that_has_no_memory_or_no_device_raises_that(fault: Exception, ends_badly: bool) -> None:
    """Plain calls would have no more memory than the capture."""

    def fail(launch: Launch) -> None:
        if launch.is_captured:
            assert device.capture is not None
            device.capture.is_invalid = ends_badly
            raise fault

    recorded = RecordedCompute(Counted())
    with pretend_cuda() as device, torch.inference_mode():
        device.on_launch = fail
        with pytest.raises(type(fault), match=str(fault)):
            recorded(inputs_of(2))
        device.on_launch = lambda _: None
        assert_answers(recorded, inputs_of(2))
        assert [launch.name for launch in device.launches].count("graph") == 1, "it is tried again"
    assert recorded.num_unrecorded == 0
