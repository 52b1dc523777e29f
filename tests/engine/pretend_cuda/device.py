"""The pretend device: computes on the CPU what is given to `cuda:N`, keeps CUDA's rules, and notes what it saw."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretend_cuda.operators import Operator, aten, count_flops, describe, leaves, replace_leaves
from pretend_cuda.streams import NOT_PERMITTED, CUDAGraph, Stream
from pretend_cuda.tensors import PretendTensor, numbers_of


@dataclass(frozen=True, slots=True)
class Launch:
    """What the host gave to the device: a kernel, a copy, or a graph.

    Attributes:
        read, written: bytes; an expanded axis counts once.
        num_kernels: 0 for a copy from or to the host, all of the graph's for a replay.
        is_captured: it goes into a graph in place of the device.
        flops: of matrix products and attention, two for a multiplication and its sum.
        held: the part of `read` that the graph did not compute itself: weights, cached keys and values, inputs; 0
            outside a graph.
    """

    name: str
    read: int
    written: int
    num_kernels: int = 1
    is_captured: bool = False
    flops: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class Note:
    """A copy between host and device ("copy in", "copy out"), or something that the host waited for.

    Attributes:
        site: file and line of the engine, or of tabpfn.
    """

    what: str
    num_bytes: int
    waits: bool
    site: str


class PretendDevice(TorchDispatchMode):
    """GPUs `cuda:0` to `cuda:N`, in the threads that entered it.

    Attributes:
        launches: everything that was given to it.
        notes: copies and waits.
        on_launch: called with each launch; it may raise the fault that the launch meets.
        attentions: the kernels that attention would have taken, by `attention.choose_kernel`.
        capture: the graph that is being captured.
    """

    def __init__(self, capability: tuple[int, int], num_gpus: int, free_bytes: int) -> None:
        super().__init__()
        self.capability, self.num_gpus, self.free_bytes = capability, num_gpus, free_bytes
        self.launches: list[Launch] = []
        self.notes: list[Note] = []
        self.on_launch: Callable[[Launch], None] = lambda _: None
        self.attentions: list[str] = []
        self.capture: CUDAGraph | None = None
        self.streams: list[Stream] = []
        self.broken_pools: set[Any] = set()
        self._default_streams: dict[int, Stream] = {}
        self._thread = threading.local()  # CUDA has a current device, and streams, for each thread
        self._pinned: dict[int, torch.UntypedStorage] = {}

    # --- what the host asks for

    def index_of(self, device: Any) -> int:
        """The number of a GPU; of the current one where none is named."""
        index = device if isinstance(device, int) or device is None else torch.device(device).index
        return self.current_device() if index is None else index

    def current_device(self) -> int:
        return getattr(self._thread, "gpu", 0)

    def set_device(self, device: Any) -> None:
        index = self.index_of(device)
        if index >= self.num_gpus:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        self._thread.gpu = index

    def default_stream(self, device: Any = None) -> Stream:
        index = self.index_of(device)
        if index not in self._default_streams:
            self._default_streams[index] = Stream(index)
        return self._default_streams[index]

    def current_stream(self, device: Any = None) -> Stream:
        streams = getattr(self._thread, "streams", {})
        return streams.get(self.index_of(device)) or self.default_stream(device)

    def set_stream(self, stream: Stream) -> None:
        self._thread.streams = {**getattr(self._thread, "streams", {}), stream.device.index: stream}
        self._thread.gpu = stream.device.index

    def synchronize(self, device: Any = None) -> None:
        """Wait for everything that a GPU was given."""
        for stream in self.streams:
            if stream.device.index == self.index_of(device):
                stream.finish()
        self.wait("synchronize", self.current_stream(device))

    def wait(self, what: str, stream: Stream | None = None, num: int | None = None) -> None:
        """The host waits for a stream, or for the first `num` pieces of its work."""
        self._require_no_capture()
        self.on_launch(Launch(what, 0, 0, 0))
        (stream or self.current_stream()).finish(num)
        self._note(what, 0, True)

    def pin(self, x: torch.Tensor) -> torch.Tensor:
        """A copy in pinned memory."""
        return self._remember_pinned(x.clone())

    def is_pinned(self, x: torch.Tensor) -> bool:
        return not isinstance(x, PretendTensor) and x.untyped_storage().data_ptr() in self._pinned

    def _remember_pinned(self, x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        self._pinned[storage.data_ptr()] = storage  # kept, so that its address stays its own
        return x

    # --- what the device is given

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if isinstance(x, PretendTensor)]
        device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if not here and (device is None or device.type != "cuda"):
            return self._compute_on_host(func, args, kwargs)
        if func is aten._to_copy.default:
            return self._to_copy(args[0], kwargs, device)
        if func is aten.copy_.default:
            return self._copy(*args)
        operator = describe(func)
        if operator.is_composite:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        gpu = self._common_gpu(operator, here, device)
        self._check_host_operands(operator, args, [x for x in tensors if not isinstance(x, PretendTensor)])
        self._find_waits(operator, args)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        return self._compute(operator, args, kwargs, here, gpu)

    def _compute_on_host(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not kwargs.pop("pin_memory", False):
            return func(*args, **kwargs)
        return self._remember_pinned(func(*args, **kwargs))

    def _common_gpu(self, operator: Operator, here: Sequence[PretendTensor], device: torch.device | None) -> int:
        gpus = {x.gpu for x in here} or {self.index_of(device)}
        if device is not None and here and device.type == "cuda":
            gpus = {self.index_of(device)}  # a factory such as `zeros_like` reads no number of its operand
        if len(gpus) > 1:
            raise RuntimeError(f"{operator.name}: expected all tensors on one device, found GPUs {sorted(gpus)}")
        return gpus.pop()

    def _check_host_operands(self, operator: Operator, args: Any, hosts: Sequence[torch.Tensor]) -> None:
        for x in hosts:
            if operator.by_index and x is not args[0]:
                self._note_copy("copy in", x, waits=True)
            elif x.dim():  # a number without axes is passed to the kernel by value
                raise RuntimeError(
                    f"{operator.name}: expected all tensors on one device, found one of shape {tuple(x.shape)} "
                    f"on the host, at {_site()}"
                )

    def _find_waits(self, operator: Operator, args: Any) -> None:
        if operator.waits:
            self.wait(operator.name)
        masks = (torch.bool, torch.uint8)
        if operator.by_index and any(isinstance(i, torch.Tensor) and i.dtype in masks for i in args[1]):
            self.wait(f"{operator.name} by a mask")

    def _compute(
        self, operator: Operator, args: Any, kwargs: dict[str, Any], here: Sequence[PretendTensor], gpu: int
    ) -> Any:
        args_, kwargs_ = replace_leaves((args, kwargs), numbers_of)
        kwargs_.pop("pin_memory", None)
        with torch._C._AutoDispatchBelowAutograd():  # type: ignore[attr-defined]
            out = operator.compute(*args_, **kwargs_)
        if operator.launches:
            outs = _tensors(out)
            written = outs or [x.numbers for x in here[:1]]
            flops = count_flops(args_, written[0]) if operator.is_product else 0
            self.launch(operator.name, [x.numbers for x in here], written, gpu, flops)
            self.record(gpu, lambda: operator.compute(*args_, **kwargs_), outs)
        known = {id(x.numbers): x for x in here}
        # a view is an inference tensor where its base is, whatever the mode
        is_view = operator.is_view and bool(here)
        inference = here[0].is_inference() if is_view else torch.is_inference_mode_enabled()

        def wrap(x: Any) -> Any:
            if not isinstance(x, torch.Tensor) or id(x) in known:
                return known.get(id(x), x)
            with torch.inference_mode(inference):
                return PretendTensor(x, gpu)

        return replace_leaves(out, wrap)

    def launch(
        self, name: str, read: Sequence[torch.Tensor], written: Sequence[torch.Tensor], gpu: int, flops: int = 0
    ) -> None:
        """Note a kernel. Raises the fault that it meets."""
        num_read, num_written = (sum(map(_num_bytes, tensors)) for tensors in (read, written))
        is_captured, held = self._is_captured(gpu), 0
        if is_captured:
            assert self.capture is not None
            held = sum(_num_bytes(x) for x in read if x.untyped_storage().data_ptr() not in self.capture.written)
            self.capture.written.update(x.untyped_storage().data_ptr() for x in written)
        self._add(Launch(name, num_read, num_written, 1, is_captured, flops, held))

    def launch_graph(self, launches: Sequence[Launch]) -> None:
        """Note the replay of a graph. Raises the fault that it meets."""
        read, written, num_kernels, flops, held = (
            sum(getattr(launch, name) for launch in launches)
            for name in ("read", "written", "num_kernels", "flops", "held")
        )
        self._add(Launch("graph", read, written, num_kernels, flops=flops, held=held))

    def record(self, gpu: int, run: Callable[[], Any], outs: Sequence[torch.Tensor]) -> None:
        """Record an operation that was just run, where its stream is captured."""
        if not self._is_captured(gpu):
            return

        def again() -> None:
            for old, new in zip(outs, _tensors(run()), strict=True):
                if old is not new and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self._captured_steps.append(again)

    @property
    def _captured_steps(self) -> list[Callable[[], None]]:
        assert self.capture is not None
        return self.capture.steps

    def _is_captured(self, gpu: int) -> bool:
        return self.capture is not None and self.capture.stream is self.current_stream(gpu)

    def _add(self, launch: Launch) -> None:
        self.on_launch(launch)
        self.launches.append(launch)
        if launch.is_captured and self.capture is not None:
            self.capture.launches.append(launch)

    # --- copies

    def _to_copy(self, x: torch.Tensor, options: dict[str, Any], device: torch.device | None) -> torch.Tensor:
        target = x.device if device is None else device
        non_blocking = options.pop("non_blocking", False)
        options = {name: value for name, value in options.items() if name not in ("device", "pin_memory")}

        def run() -> torch.Tensor:
            return aten._to_copy.default(numbers_of(x), **options)

        with torch._C._AutoDispatchBelowAutograd():  # type: ignore[attr-defined]
            out = run()
        if target.type == "cpu":
            if non_blocking:  # torch pins the new tensor
                self._remember_pinned(out)
            self._copy_out(x.numbers, out, x.gpu, non_blocking)  # type: ignore[attr-defined]
            return out
        made = PretendTensor(out, self.index_of(target))
        if isinstance(x, PretendTensor):
            self.launch("aten._to_copy.default", [x.numbers], [out], x.gpu)
            self.record(x.gpu, run, [out])
        else:
            self._copy_in(x, out, made.gpu, non_blocking)
        return made

    def _copy(self, to: torch.Tensor, of: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        is_here, comes_from_here = isinstance(to, PretendTensor), isinstance(of, PretendTensor)
        target, source = numbers_of(to), numbers_of(of)
        if is_here and not comes_from_here and not source.dim():
            comes_from_here = True  # a number without axes is passed to the kernel by value
        if not is_here:
            self._copy_out(source, target, of.gpu, non_blocking)  # type: ignore[attr-defined]
            return to
        with torch._C._AutoDispatchBelowAutograd():  # type: ignore[attr-defined]
            target.copy_(source)
        gpu = to.gpu  # type: ignore[attr-defined]
        if comes_from_here:
            self.launch("aten.copy_.default", [source], [target], gpu)
            self.record(gpu, lambda: target.copy_(source), [target])
        else:
            self._copy_in(source, target, gpu, non_blocking)
        return to

    def _copy_in(self, host: torch.Tensor, numbers: torch.Tensor, gpu: int, non_blocking: bool) -> None:
        """Note a copy to the device, which was done. Pinned memory must stay as it is until the device has read it."""
        waits = not (non_blocking and self.is_pinned(host))
        self._note_copy("copy in", host, waits)

        def watch() -> None:
            given, stream = host.clone(), self.current_stream(gpu)

            def check() -> None:
                same = torch.equal(given.nan_to_num(), host.nan_to_num())
                assert same, "pinned memory was written to before the device had read it"

            stream.submit(check)

        def run() -> None:
            numbers.copy_(host)
            watch()

        if waits:
            self.current_stream(gpu).finish()
        elif self._is_captured(gpu):
            self._captured_steps.append(run)
        else:
            watch()

    def _copy_out(self, numbers: torch.Tensor, host: torch.Tensor, gpu: int, non_blocking: bool) -> None:
        """Copy to the host: at once, or, into pinned memory and without a wait, when somebody has waited for it."""
        waits = not (non_blocking and self.is_pinned(host))
        self._note_copy("copy out", numbers, waits)

        def run() -> None:
            given, stream = numbers.clone(), self.current_stream(gpu)
            host.fill_(math.nan if host.is_floating_point() else 0)  # so that who reads too early sees it
            stream.submit(lambda: _set(host, given))

        if waits:
            self.current_stream(gpu).finish()
            _set(host, numbers)
        elif self._is_captured(gpu):
            self._captured_steps.append(run)
        else:
            run()

    def _note_copy(self, what: str, x: torch.Tensor, waits: bool) -> None:
        if waits:
            self._require_no_capture()
        self._add(Launch(what, _num_bytes(x), _num_bytes(x), 0, is_captured=not waits and self.capture is not None))
        self._note(what, _num_bytes(x), waits)

    def _note(self, what: str, num_bytes: int, waits: bool) -> None:
        self.notes.append(Note(what, num_bytes, waits, _site()))

    def _require_no_capture(self) -> None:
        if self.capture is not None:
            self.capture.is_invalid = True
            raise torch.AcceleratorError(f"{NOT_PERMITTED}, at {_site()}")


def _tensors(out: Any) -> list[torch.Tensor]:
    return [x for x in leaves(out) if isinstance(x, torch.Tensor)]


def _set(host: torch.Tensor, numbers: torch.Tensor) -> None:
    with torch.inference_mode(), torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        host.copy_(numbers)


def _num_bytes(x: torch.Tensor) -> int:
    cells = math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or not size)
    return cells * x.element_size()


def _site() -> str:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        for place in ("/serve/engine/", "/site-packages/tabpfn/"):
            if place in frame.f_code.co_filename:
                return f"{frame.f_code.co_filename.split(place)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
