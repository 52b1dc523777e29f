"""The part that all simulated servers share: a device that runs one batch at a time, and the outcomes of requests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.device import Device
from benchmarks.simulation.request import Context, Outcome, Request

OnEnd = Callable[[Request], None]


@dataclass(frozen=True, slots=True)
class Setup:
    """What a simulated server is given, whatever its policy.

    Attributes:
        contexts: every context that requests can name.
        on_end: called with each request of a caller, once, when it has its outcome.
    """

    clock: VirtualClock
    device: Device
    contexts: Sequence[Context] = ()
    on_end: OnEnd | None = None


class Server:
    """One replica. A policy implements `arrive` and gives each request one outcome with `_end`.

    Attributes:
        max_request_rows: callers cut larger requests into pieces and send the pieces at once; None: requests of any
            size are sent whole.
        busy_s, num_batches, num_batch_rows: what the device did so far.
    """

    max_request_rows: int | None = None

    def __init__(self, setup: Setup) -> None:
        self._clock, self._device, self._on_end = setup.clock, setup.device, setup.on_end
        self._is_busy = False
        self._is_waking = False
        self._in_pieces: dict[Request, tuple[Outcome, float]] = {}
        self._rng = random.Random(1)
        self.busy_s = 0.0
        self.num_batches = 0
        self.num_batch_rows = 0

    def accept(self, request: Request) -> None:
        """A caller sends a request now."""
        most = self.max_request_rows
        if most is None or request.num_rows <= most:
            self.arrive(request)
            return
        left = request.num_rows
        while left:
            num_rows = min(most, left)
            left -= num_rows
            self.arrive(
                Request(request.context, num_rows, request.priority, request.arrived_at, request.deadline, request)
            )

    def arrive(self, request: Request) -> None:
        """A request, or a piece of one, reaches the server."""
        raise NotImplementedError

    def _wake(self) -> None:
        """The policy decides; called once for all requests that arrived at the same moment."""

    def _wake_soon(self) -> None:
        if not self._is_waking:
            self._is_waking = True
            self._clock.at(self._clock.now, self._awake)

    def _awake(self, _: object) -> None:
        self._is_waking = False
        self._wake()

    def _occupy(self, num_rows: int) -> float:
        """Give a batch to the device; the time at which the batch ends."""
        seconds = self._device.seconds(num_rows)
        scatter = self._device.scatter
        if scatter:
            seconds *= math.exp(self._rng.gauss(-scatter * scatter / 2, scatter))
        self.busy_s += seconds
        self.num_batches += 1
        self.num_batch_rows += num_rows
        return self._clock.now + seconds

    def _end(self, request: Request, outcome: Outcome, at: float) -> None:
        assert request.outcome is None, "a request has one outcome"
        request.outcome = outcome
        request.ended_at = at
        if request.whole is not None:
            self._end_piece(request, request.whole)
        elif self._on_end is not None:
            self._on_end(request)

    def _end_piece(self, piece: Request, whole: Request) -> None:
        """A request in pieces ends when its last piece ends, with the outcome of its worst piece."""
        assert piece.outcome is not None
        worst, latest = self._in_pieces.pop(whole, (Outcome.ANSWERED, 0.0))
        worst, latest = max(worst, piece.outcome), max(latest, piece.ended_at)
        whole.rows_left -= piece.num_rows
        if whole.rows_left:
            self._in_pieces[whole] = worst, latest
        else:
            self._end(whole, worst, latest)

    def _end_in_time(self, request: Request) -> None:
        """Answered now; or expired, at its deadline, if that has passed."""
        now = self._clock.now
        if now > request.deadline:
            self._end(request, Outcome.EXPIRED, request.deadline)
        else:
            self._end(request, Outcome.ANSWERED, now)
