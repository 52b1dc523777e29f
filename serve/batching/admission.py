"""Refusing at the door: a request is admitted with a permit or refused at once, before any work is done for it.

Theory of operation: a permit stands for one ongoing request, queued or in flight. There are `max_ongoing_requests` of
them, so the queue cannot absorb an overload and turn it into waiting. Whoever acquired a permit releases it once, when
the request has its outcome, whichever that is; a second release is our own bug and raises.

A refusal says when to come back: the time in which all that is ongoing would be answered, from the learned mean
time of a batch. It is short of the truth where contexts are many, because their rows cannot share batches. Predicted
finish against a caller's deadline (a learned cost per context) is to take its place here, in `acquire`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from serve.errors import Draining, Overloaded

_FIRST_GUESS_S = 1.0
"""Time of a batch before one was seen."""

_NEWEST_WEIGHT = 0.2
"""Weight of the newest batch in the mean: about the last ten batches count."""


@dataclass(frozen=True, slots=True, eq=False)
class Permit:
    """One ongoing request's place."""

    num_rows: int


class AdmissionController:
    """Hands out permits. Used from the event loop only."""

    def __init__(self, max_ongoing_requests: int, max_batch_rows: int) -> None:
        self._max_ongoing_requests = max_ongoing_requests
        self._max_batch_rows = max_batch_rows
        self._permits: set[Permit] = set()
        self._num_rows = 0
        self._mean_batch_s: float | None = None
        self._closed = False

    @property
    def num_ongoing(self) -> int:
        return len(self._permits)

    def acquire(self, num_rows: int) -> Permit:
        """Admit a request or raise Draining, Overloaded. Pair with `release`."""
        if self._closed:
            raise Draining("this replica is shutting down; send the request again, another one will take it")
        if len(self._permits) >= self._max_ongoing_requests:
            raise Overloaded(
                f"{len(self._permits)} requests are ongoing, as many as this replica takes",
                retry_after_s=self.retry_after_s(),
            )
        permit = Permit(num_rows)
        self._permits.add(permit)
        self._num_rows += num_rows
        return permit

    def release(self, permit: Permit) -> None:
        """Give the place back. Raises KeyError for a permit that is not out: it was released before."""
        self._permits.remove(permit)
        self._num_rows -= permit.num_rows

    def close(self) -> None:
        """Admit nothing more; permits that are out stay valid."""
        self._closed = True

    def learn(self, batch_s: float) -> None:
        """Take the time of one answered batch into the mean."""
        mean = batch_s if self._mean_batch_s is None else self._mean_batch_s
        self._mean_batch_s = mean + _NEWEST_WEIGHT * (batch_s - mean)

    def retry_after_s(self) -> float:
        """Seconds in which all ongoing rows would be answered in full batches."""
        num_batches = math.ceil(self._num_rows / self._max_batch_rows)
        return num_batches * (_FIRST_GUESS_S if self._mean_batch_s is None else self._mean_batch_s)
