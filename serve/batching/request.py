"""One caller's request inside the batcher, and the joining of its answer from the batches that its rows rode in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from serve.core import FittedContext, Matrix, Prediction, Priority, Timing
from serve.core.errors import ServeError


@dataclass(slots=True, eq=False)
class Request:
    """See `fifo.QueuedRequest`. Its outcome is the first that `answer` is given; whoever comes later finds it done."""

    context: FittedContext
    rows: Matrix
    num_rows: int
    model: str
    priority: Priority
    arrived_at: float
    deadline: float
    answer: asyncio.Future[Prediction]
    num_answered: int = field(default=0, init=False)
    """Rows whose outputs are there."""
    _outputs: Matrix | None = field(default=None, init=False)
    _queue_ms: float = field(default=0.0, init=False)
    _compute_ms: float = field(default=0.0, init=False)

    def take(self, start: int, outputs: Matrix, batch_rows: int, started_at: float, batch_s: float) -> None:
        """Outputs of the rows from `start` on, from a batch that began at `started_at`; the last ones answer.

        `outputs` must be the request's own: the answer outlives the batch, whose memory the engine may use again.
        """
        if not self.num_answered:
            self._queue_ms = 1e3 * (started_at - self.arrived_at)
        self._compute_ms += 1e3 * batch_s
        self.num_answered += len(outputs)
        if len(outputs) < self.num_rows:
            if self._outputs is None:
                self._outputs = np.empty((self.num_rows, outputs.shape[1]))
            self._outputs[start : start + len(outputs)] = outputs
            outputs = self._outputs
        if self.num_answered == self.num_rows:
            self.answer.set_result(Prediction(outputs, batch_rows, Timing(self._queue_ms, self._compute_ms)))

    def fail(self, error: type[ServeError], detail: str) -> None:
        """Its outcome, if it has none yet: a new error for each, since callers add their tracebacks."""
        if not self.answer.done():
            self.answer.set_exception(error(detail))
