"""Requests and queues without a clock, for the tests of the policy."""

import math
from dataclasses import dataclass

from serve.batching import BatchQueue, CostModel, QueueLimits
from serve.core import Priority
from serve.engine.fake import FakeContext

A, B, C = FakeContext(), FakeContext(), FakeContext()
BULK, INTERACTIVE = Priority.BULK, Priority.INTERACTIVE
FIXED_S, PER_ROW_S = 0.010, 0.001


@dataclass(slots=True, eq=False)
class Request:
    context: FakeContext
    num_rows: int = 1
    arrived_at: float = 0.0
    deadline: float = math.inf
    priority: Priority = INTERACTIVE
    model: str = "m"


Queue = BatchQueue[Request]
Pieces = list[tuple[Request, int, int]]


def cost_s(num_rows: int) -> float:
    return FIXED_S + PER_ROW_S * num_rows


def cost_model(max_batch_rows: int, *contexts: FakeContext) -> CostModel:
    """Of contexts that cost `cost_s` of their row bucket."""
    model = CostModel(max_batch_rows)
    buckets = [2**exponent for exponent in range(10) if 2**exponent < max_batch_rows] + [max_batch_rows]
    for context in contexts:
        model.seed(context, {bucket: cost_s(bucket) for bucket in buckets}, 0.0)
    return model


def queue_of(
    *requests: Request, max_batch_rows: int = 10, cost: CostModel | None = None, **limits_s: float | None
) -> Queue:
    limits = QueueLimits(**limits_s)  # type: ignore[arg-type]
    queue: Queue = BatchQueue(cost or CostModel(max_batch_rows), limits)
    for request in requests:
        queue.add(request)
    return queue


def whole(*requests: Request) -> Pieces:
    """The slices of requests that ride in one piece."""
    return [(request, 0, request.num_rows) for request in requests]
