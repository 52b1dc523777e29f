"""Giving callers their outcomes, and the metrics and cost estimates theirs. On the event loop, off the device's way."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from serve.batching.cost import CostModel
from serve.batching.device import Computed
from serve.batching.fifo import Slice
from serve.batching.queue import BatchQueue
from serve.batching.recovery import num_rows_of
from serve.batching.request import Request
from serve.core.errors import DeadlineExceeded, EngineError
from serve.telemetry.prometheus import Metrics

_log = logging.getLogger(__name__)


class Outcomes:
    """Each of its calls leaves a request that already has an outcome as it is."""

    def __init__(self, queue: BatchQueue[Request], cost: CostModel, metrics: Metrics) -> None:
        self._queue = queue
        self._cost = cost
        self._metrics = metrics
        self._faults: list[tuple[int, BaseException]] = []

    def settle(self, part: Sequence[Slice[Request]], computed: Computed, cost_s: float) -> None:
        """Hand out the answers of a batch that succeeded and kept the next one waiting for `cost_s`."""
        try:
            self._answer(part, computed)
            self._observe(part, computed, cost_s)
        except Exception as error:
            self.fail(part, error)
            self.log_faults(part)

    def fail(self, part: Sequence[Slice[Request]], error: BaseException) -> None:
        """The device failed on these rows; what is left of their requests is not computed. See `log_faults`."""
        self._faults.append((len(part), error))
        for request, _, _ in part:
            request.fail(EngineError, "the model could not answer; the cause is in the server's log")
            self._queue.remove(request)

    def log_faults(self, batch: Sequence[Slice[Request]]) -> None:
        """One record for a batch some of whose parts failed, with the first cause: what is broken fails alike."""
        if not self._faults:
            return
        faults, self._faults = self._faults, []
        num_failed = sum(num_requests for num_requests, _ in faults)
        _log.error(
            "in a batch of %d requests, %d rows, the engine failed on %d requests",
            len(batch), num_rows_of(batch), num_failed, exc_info=faults[0][1],
        )  # fmt: skip

    def expire(self, request: Request, stage: str) -> None:
        """Its deadline has passed; `stage` says where it was."""
        if not request.answer.done():
            self._metrics.expired_requests.labels(request.model, stage).inc()
            had_ms = 1e3 * (request.deadline - request.arrived_at)
            request.fail(DeadlineExceeded, f"no answer within the {had_ms:.0f} ms that the request had")

    def _answer(self, part: Sequence[Slice[Request]], computed: Computed) -> None:
        outputs, started_at, batch_s = computed.outputs, computed.started_at, computed.seconds
        assert outputs is not None
        queue_seconds = self._metrics.queue_seconds.labels(part[0].request.model)
        row, batch_rows = 0, len(outputs)
        for request, start, stop in part:
            following = row + stop - start
            if not request.answer.done():
                if not request.num_answered:
                    queue_seconds.observe(started_at - request.arrived_at)
                request.take(start, outputs[row:following].copy(), batch_rows, started_at, batch_s)
            row = following

    def _observe(self, part: Sequence[Slice[Request]], computed: Computed, cost_s: float) -> None:
        model, num_rows = part[0].request.model, num_rows_of(part)
        cost = self._cost.of(part[0].request.context)
        if predicted_s := cost.predict(num_rows):
            self._metrics.batch_cost_ratio.labels(model).observe(cost_s / predicted_s)
        cost.learn(num_rows, cost_s, computed.ended_at)
        self._metrics.batch_seconds.labels(model).observe(computed.seconds)
        self._metrics.batch_rows.labels(model).observe(num_rows)
        self._metrics.batch_requests.labels(model).observe(len(part))
