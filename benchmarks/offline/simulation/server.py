"""What every simulated replica shares: a device that runs one batch at a time, and the giving of outcomes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from benchmarks.offline.simulation.clock import VirtualClock
from benchmarks.offline.simulation.device import Device
from benchmarks.offline.simulation.request import Context, Outcome, Request

OnEnd = Callable[[Request], None]


class Server:
    """One replica. A policy overrides `arrive`, and ends each request once, by `_end`.

    `max_request_rows`: what is larger is cut up by its caller and sent as several requests at once, as callers of a
    server must that refuses large ones; None where the server takes any.
    """

    max_request_rows: int | None = None

    def __init__(
        self, clock: VirtualClock, device: Device, contexts: Sequence[Context] = (), on_end: OnEnd | None = None
    ) -> None:
        self._clock = clock
        self._device = device
        self._contexts = contexts
        self._on_end = on_end
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
            piece = Request(
                request.context, min(most, left), request.priority, request.arrived_at, request.deadline, request
            )
            left -= piece.num_rows
            self.arrive(piece)

    def arrive(self, request: Request) -> None:
        raise NotImplementedError

    def _wake(self) -> None:
        """The policy's turn, once for all that arrived at the same moment."""

    def _wake_soon(self) -> None:
        if not self._is_waking:
            self._is_waking = True
            self._clock.at(self._clock.now, self._awake)

    def _awake(self, _: object) -> None:
        self._is_waking = False
        self._wake()

    def _occupy(self, num_rows: int) -> float:
        """A batch goes to the device; when it will be back."""
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
        """For its caller a request that was cut up ends with its last piece, and as its worst one."""
        assert piece.outcome is not None
        worst, latest = self._in_pieces.pop(whole, (Outcome.ANSWERED, 0.0))
        worst, latest = max(worst, piece.outcome), max(latest, piece.ended_at)
        whole.rows_left -= piece.num_rows
        if whole.rows_left:
            self._in_pieces[whole] = worst, latest
        else:
            self._end(whole, worst, latest)

    def _end_in_time(self, request: Request) -> None:
        """Answered now, or, where the server knows deadlines, told at the deadline that it had passed."""
        now = self._clock.now
        if now > request.deadline:
            self._end(request, Outcome.EXPIRED, request.deadline)
        else:
            self._end(request, Outcome.ANSWERED, now)
