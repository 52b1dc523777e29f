"""The pretend device keeps CUDA's rules: a test on it would otherwise prove nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pretend_cuda import Launch, pretend_cuda

GPU = torch.device("cuda:0")
Compute = Callable[[torch.Tensor], torch.Tensor]


def whats(device: object) -> list[str]:
    return [note.what for note in device.notes]  # type: ignore[attr-defined]


def test_operands_on_different_devices_are_refused() -> None:
    with pretend_cuda():
        here, there, host = torch.ones(3, device=GPU), torch.ones(3, device="cuda:1"), torch.ones(3)
        for other in (there, host):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                here + other
        assert (here + torch.tensor(2.0)).tolist() == [3, 3, 3], "a number without axes is passed by value"
        assert (here + there.to(GPU)).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x[torch.tensor([0])],
        lambda x: x.copy_(torch.ones(2), non_blocking=True),
        lambda x: torch.empty(2).copy_(x, non_blocking=True),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda _: torch.cuda.synchronize(),
        lambda _: torch.cuda.current_stream().synchronize(),
    ],
)
def test_what_makes_the_host_wait_is_noted(ask: Callable[[torch.Tensor], object]) -> None:
    with pretend_cuda() as device:
        x = torch.ones(2, device=GPU)
        assert device.notes == []
        ask(x)
        assert [note.waits for note in device.notes] == [True]


def test_what_only_launches_is_not_noted_and_its_kernels_and_bytes_are_counted() -> None:
    with pretend_cuda() as device:
        x, weight = torch.ones(2, 3, device=GPU), torch.ones(3, 4, device=GPU)
        device.launches.clear()
        torch.relu(x @ weight).view(8)[1:3].expand(5, 2)
        assert device.launches == [
            Launch("aten.mm.default", 4 * (6 + 12), 4 * 8, flops=2 * 2 * 3 * 4),
            Launch("aten.relu.default", 4 * 8, 4 * 8),
        ]
        assert device.notes == []


def test_a_product_may_widen_its_sums() -> None:
    with pretend_cuda():
        x = torch.full((2, 3), 0.1, dtype=torch.bfloat16, device=GPU)
        wide = torch.addmm(torch.ones(2, 2, device=GPU), x, x.t(), out_dtype=torch.float32)
        expected = 1 + x.cpu().float() @ x.cpu().float().t()
        torch.testing.assert_close(wide.cpu(), expected, rtol=0, atol=0)


# --- graphs


def record(
    compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # torch's own stream stays on the first GPU that it met
        out = compute(x)
    return graph, out


def test_a_graph_computes_again_from_the_same_memory() -> None:
    factor = 2.0
    with pretend_cuda() as device:
        x = torch.tensor([1.0, 2.0], device=GPU)
        graph, out = record(lambda x: (x * factor).square().sum(), x)
        x.copy_(torch.tensor([3.0, 4.0]))
        assert out.item() == 20
        factor, before = 100.0, len(device.launches)
        graph.replay()
        assert [launch.num_kernels for launch in device.launches[before:]] == [3]
        assert out.item() == 100, "other numbers, and the factor that was baked in"


@pytest.mark.parametrize("ask", [lambda x: x * x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu()])
def test_what_waits_ends_a_capture_and_breaks_its_pool(ask: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pretend_cuda() as device:
        x = torch.ones(2, device=GPU)
        good = torch.cuda.CUDAGraph()
        with torch.cuda.graph(good):
            x * 2
        with pytest.raises(torch.AcceleratorError, match="previous error during capture") as caught:  # noqa: SIM117
            with torch.cuda.graph(torch.cuda.CUDAGraph(), pool=good.pool()):
                ask(x)
        assert "not permitted when stream is capturing" in str(caught.value.__context__)
        assert device.capture is None
        assert torch.cuda.current_stream() is not torch.cuda.default_stream(), "torch leaves the stream as it was"
        with pytest.raises(RuntimeError, match="already recording to mempool_id"):
            torch.cuda.CUDAGraph().capture_begin(good.pool())


def test_a_capture_sees_the_current_gpu_alone() -> None:
    with pretend_cuda():
        x = torch.ones(2, device="cuda:1")
        with pytest.warns(UserWarning, match="The CUDA Graph is empty"):
            record(torch.neg, x)
        torch.cuda.set_device(1)
        graph, _ = record(torch.neg, x)
        assert len(graph.launches) == 1  # type: ignore[attr-defined]


def test_a_graph_tells_what_it_holds_from_what_it_computed() -> None:
    with pretend_cuda() as device:
        x, weight = torch.ones(2, 3, device=GPU), torch.ones(3, 3, device=GPU)
        graph, _ = record(lambda x: torch.addmm(x @ weight, x, weight).relu_(), x)
        graph.replay()
        first, second, third = graph.launches  # type: ignore[attr-defined]
        assert (first.held, second.held, third.held) == (4 * (6 + 9), 4 * (6 + 9), 0)
        assert second.read == 4 * (6 + 6 + 9)
        replay = device.launches[-1]
        assert (replay.held, replay.flops) == (2 * 4 * (6 + 9), 2 * 2 * 2 * 3 * 3)


def test_the_multiplications_of_attention_are_counted() -> None:
    with pretend_cuda() as device:
        query, key = torch.ones(2, 4, 5, 8, device=GPU), torch.ones(2, 4, 7, 8, device=GPU)
        value = torch.ones(2, 4, 7, 16, device=GPU)
        torch.nn.functional.scaled_dot_product_attention(query, key, value)
        assert device.launches[-1].flops == 2 * (2 * 4 * 5 * 7) * (8 + 16)


# --- copies without a wait


def test_a_copy_without_a_wait_arrives_behind_its_event() -> None:
    with pretend_cuda() as device:
        x = torch.tensor([1.0, 2.0], device=GPU)
        host = torch.zeros(2, pin_memory=True)
        assert host.is_pinned()
        device.notes.clear()
        host.copy_(x, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        x.zero_()
        assert host.isnan().all(), "not there yet"
        assert [note.waits for note in device.notes] == [False]
        event.synchronize()
        assert host.tolist() == [1, 2]
        assert whats(device) == ["copy out", "event.synchronize"]


def test_a_stream_waits_for_another() -> None:
    with pretend_cuda():
        x = torch.ones(2, device=GPU)
        aside = torch.cuda.Stream()
        with torch.cuda.stream(aside):
            host = x.to("cpu", non_blocking=True)
        event = torch.cuda.current_stream().record_event()
        event.synchronize()
        assert host.isnan().all()
        torch.cuda.current_stream().wait_stream(aside)
        event.record()
        assert not event.query()
        event.synchronize()
        assert host.tolist() == [1, 1]
        assert event.query()


def test_pinned_memory_is_the_devices_until_it_has_read_it() -> None:
    with pretend_cuda():
        host = torch.ones(2).pin_memory()
        host.to(GPU, non_blocking=True)
        torch.cuda.synchronize()
        host.zero_()
        host.to(GPU, non_blocking=True)
        host.add_(1)
        with pytest.raises(AssertionError, match="before the device had read it"):
            torch.cuda.synchronize()


def test_a_graph_may_hold_copies_without_a_wait() -> None:
    with pretend_cuda() as device:
        given, answer = torch.ones(2, pin_memory=True), torch.zeros(2, pin_memory=True)
        x = torch.zeros(2, device=GPU)

        def compute(x: torch.Tensor) -> torch.Tensor:
            x.copy_(given, non_blocking=True)
            return answer.copy_(x * 2, non_blocking=True)

        graph, _ = record(compute, x)
        given.fill_(3)
        assert answer.tolist() == [0, 0], "a capture computes nothing"
        graph.replay()
        assert answer.isnan().all()
        torch.cuda.current_stream().synchronize()
        assert answer.tolist() == [6, 6]
        assert whats(device)[-1] == "stream.synchronize"
        graph.replay()
        given.fill_(4)
        with pytest.raises(AssertionError, match="before the device had read it"):
            torch.cuda.synchronize()


# --- faults


def test_a_launch_meets_the_fault_of_the_test() -> None:
    def fail(launch: Launch) -> None:
        if launch.name == "aten.neg.default":
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pretend_cuda() as device:
        x = torch.ones(2, device=GPU)
        device.on_launch = fail
        x.abs()
        with pytest.raises(torch.OutOfMemoryError):
            x.neg()


def test_torch_is_as_before_afterwards() -> None:
    with pretend_cuda():
        torch.backends.cuda.enable_cudnn_sdp(False)
    assert not torch.cuda.is_available()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(2, device=GPU)
