"""A look at the door before a request is read: would even one row of it be refused?

Reading a request costs more than refusing it, and under overload most are refused. So whoever knows the model, the
deadline and the priority asks here first. The answer is `AdmissionController.check`'s own, for a request of one row:
whatever more rows a request has, they take no less, so one that is refused here would be refused as a whole. (Where
noise has made a larger row bucket's estimate the cheaper one, the single row's decides.) Who passes is not admitted
yet: `Batcher.submit` asks again, with its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from serve.batching.admission import AdmissionController
from serve.batching.request import Request
from serve.core import FittedContext, Priority
from serve.core.errors import Overloaded
from serve.telemetry.prometheus import Metrics


class OneRow(NamedTuple):
    """The least that a request can be; see `fifo.QueuedRequest`."""

    context: FittedContext
    num_rows: int
    priority: Priority
    arrived_at: float
    deadline: float


class AdmissionPrecheck:
    """Asks and counts, admits nobody. Used from the event loop only."""

    def __init__(self, admission: AdmissionController[Request], metrics: Metrics, clock: Callable[[], float]) -> None:
        self._admission = admission
        self._metrics = metrics
        self._clock = clock

    def check(self, context: FittedContext, *, model: str, timeout_s: float | None, priority: Priority) -> None:
        """Return if one row may come in now; the arguments are those of `Batcher.submit`.

        Raises:
            Overloaded: refused, and counted as every refusal.
            Draining: nobody is admitted any more.
        """
        now = self._clock()
        deadline = now + (self._admission.timeout_s(context) if timeout_s is None else timeout_s)
        try:
            self._admission.check(OneRow(context, 1, priority, now, deadline), now)
        except Overloaded as refusal:
            self._metrics.refused_requests.labels(model, refusal.reason).inc()
            raise
