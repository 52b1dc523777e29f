"""Streams, events and graphs of the pretend device.

Kernels compute at once. Only copies without a wait are kept back, as a GPU may: their bytes are at the host when
somebody has waited for the stream or for an event behind them, and not before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pretend_cuda.device import Launch, PretendDevice

NOT_PERMITTED = "CUDA error: operation not permitted when stream is capturing"
INVALIDATED = "CUDA error: operation failed due to a previous error during capture"


class Stream:
    """A stream of one GPU; the current GPU's where none is named."""

    on: PretendDevice  # set by `pretend_cuda`

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        del priority
        self.device = torch.device("cuda", self.on.index_of(device))
        self._kept_back: list[Callable[[], None]] = []
        self.num_done = 0
        self.on.streams.append(self)

    @property
    def num_submitted(self) -> int:
        """Pieces of work that were submitted so far and take effect when somebody waits for them."""
        return self.num_done + len(self._kept_back)

    def submit(self, work: Callable[[], None]) -> None:
        """Keep work back until somebody waits for it."""
        self._kept_back.append(work)

    def finish(self, num: int | None = None) -> None:
        """Let the first `num` pieces of work take effect; all without a number."""
        while self._kept_back and (num is None or self.num_done < num):
            self.num_done += 1
            self._kept_back.pop(0)()

    def synchronize(self) -> None:
        self.on.wait("stream.synchronize", self)

    def query(self) -> bool:
        return self.record_event().query()

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


class Event:
    """A place in a stream."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        del enable_timing, blocking, interprocess
        self._stream: Stream | None = None
        self._place = 0

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or torch.cuda.current_stream()
        self._place = self._stream.num_submitted

    def synchronize(self) -> None:
        if self._stream is not None:
            self._stream.on.wait("event.synchronize", self._stream, self._place)

    def query(self) -> bool:
        """Whether the work before it is done. The device gets on by one piece, so that who asks again is not stuck."""
        if self._stream is None or self._stream.num_done >= self._place:
            return True
        self._stream.finish(self._stream.num_done + 1)
        return False

    def wait(self, stream: Stream | None = None) -> None:
        """Work that is submitted to `stream` from now on comes after this event."""
        behind, place = self._stream, self._place
        if behind is not None:
            (stream or torch.cuda.current_stream()).submit(lambda: behind.finish(place))


class CUDAGraph:
    """What one stream was given while it was captured; a replay computes it again into the same memory.

    Attributes:
        written: addresses of the memory that its kernels wrote; `steps` keep it, so that no address is used twice.
    """

    on: PretendDevice  # set by `pretend_cuda`

    def __init__(self, keep_graph: bool = False) -> None:
        del keep_graph
        self.stream: Stream | None = None
        self.launches: list[Launch] = []
        self.steps: list[Callable[[], None]] = []
        self.written: set[int] = set()
        self.is_invalid = False
        self._pool: Any = None

    def capture_begin(
        self, pool: Any = None, capture_error_mode: str = "global", check_input_liveness: bool = False
    ) -> None:
        del capture_error_mode, check_input_liveness
        assert self.on.capture is None, "one capture at a time"
        stream = torch.cuda.current_stream()
        if stream is torch.cuda.default_stream():
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        if pool in self.on.broken_pools:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.stream, self._pool = stream, pool or (len(self.on.streams), id(self))
        self.on.capture = self

    def capture_end(self) -> None:
        """As torch: a capture that was invalidated leaves its memory pool in a state in which it takes no other."""
        self.on.capture = None
        if self.is_invalid:
            self.on.broken_pools.add(self._pool)
            raise torch.AcceleratorError(INVALIDATED)
        if not self.launches:
            warnings.warn("The CUDA Graph is empty. It was captured on a wrong device or stream.", stacklevel=2)

    def pool(self) -> Any:
        return self._pool

    def replay(self) -> None:
        assert self.stream is not None, "no capture"
        self.on.launch_graph(self.launches)
        with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            for step in self.steps:
                step()
