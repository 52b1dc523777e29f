"""The batching policy, as a state machine: no clock, thread or event loop; time is an argument.

Theory of operation
-------------------
Requests of one fitted context may share a forward pass; requests of two contexts may not. The batch key is the
*identity* of the fitted context. A context has one FIFO of interactive requests and one of bulk requests. It is listed
here only while it holds a request.

When the device is free, the shell calls `expire(now)` and then `cut(now)`:

- A context is ready when waiting for more rows is over or can gain nothing: its rows fill a batch, its oldest request
  came `max_queue_delay_s` ago or longer, or its deadline would not survive more waiting. With a delay of 0 every
  context is always ready, and requests that queued while the device was busy still share a batch.
- Of the ready contexts with interactive rows, the turn goes to the one whose oldest interactive request has the
  earliest deadline. Where there is none, it goes to a context with bulk rows, by the same rule. A deadline counts as
  at most `max_turn_delay_s` after arrival, so that every context gets a turn.
- Interactive rows are taken from the front, up to the row budget of the context. A request that is larger than the
  remaining room is split there, and its rest stays at the head: no request is overtaken within a FIFO.
- A few rows are left if they would pad the batch to the next row bucket at a higher cost than in a batch of their own
  (`ContextCost.efficient_batch_rows`). They are at the head of the next batch.
- Then bulk rows of the same context fill the remaining room.

Bulk rows must not cost interactive callers more than one bounded batch:

- A batch with bulk rows is bounded: it is predicted to take `max_bulk_batch_s` at most (by default `BULK_COST_FACTOR`
  times one row), unless its interactive rows alone take longer, or not even one row takes less.
- No interactive row waits behind two such batches. An interactive request that waits while one is cut, or arrives while
  one runs, is *delayed*. Bulk rows go to the device only when no delayed request would be left waiting. For this, each
  interactive request has an *epoch*, the number of bulk batches before it. It is delayed when its epoch is not the
  newest.

Bulk does not starve either. A context whose bulk rows were not served for `max_bulk_wait_s` is *due*. It gets the next
turn in which no delayed request waits, with at least half of the batch for bulk. Until then no other context's bulk
rows are batched, because they would make new delayed requests. Every delayed request is served or expires by its
deadline, so the wait is bounded: `max_bulk_wait_s`, then the longest interactive timeout, for each context that is due.

What is always true:
- An added request leaves exactly once: in slices by `cut`, which follow each other from row 0 to its last row, or (with
  its remaining rows) by `remove`, `expire` or `clear`.
- A batch holds 1 row to the row budget, of one context.
- `cut(now)` is empty exactly when `next_cut_at()` is None or later than `now`. So the shell sleeps until then or until
  the next `add`, and never polls.

Where the engine takes two batches, the shell cuts one ahead while another is on the device (`busy_s`). An interactive
request that arrives then waits for both. So bulk rows of both batches together, as far as they are not computed yet,
stay within the bound of one batch; and requests count as delayed until no batch in flight holds bulk rows (`end_bulk`).

What would break it: a `cut` without `busy_s` while a batch is on the device, since arrivals would not count as delayed;
a request whose hash is not its identity; `arrived_at` or `deadline` from another clock than `now`.
"""

from __future__ import annotations

import math
from typing import Generic

from serve.batching.admission_inputs import Forecast
from serve.batching.cost import ContextCost, CostModel
from serve.batching.deadlines import Deadlines
from serve.batching.fifo import ContextQueue, QueuedRequest, R, Slice, WaitingTimes, turn_of
from serve.batching.limits import QueueLimits
from serve.core import FittedContext, Priority


class BatchQueue(Generic[R]):
    """Waiting requests, and the decision which rows form the next batch. See the theory above."""

    def __init__(self, cost: CostModel, limits: QueueLimits) -> None:
        self._cost = cost
        self._limits = limits
        self._delay_s = limits.max_queue_delay_s
        self._contexts: dict[int, ContextQueue[R]] = {}
        self._deadlines: Deadlines[R] = Deadlines(self.holds)
        self._reset()

    def _reset(self) -> None:
        self.num_requests = 0
        self._num_interactive = 0
        self._num_rows = {Priority.INTERACTIVE: 0, Priority.BULK: 0}
        self._interactive_s = self._bulk_s = 0.0
        self._num_bulk_batches = 0
        self._num_delayed = 0
        self._bulk_in_flight = False

    @property
    def num_rows(self) -> int:
        """Waiting rows."""
        return sum(self._num_rows.values())

    def num_rows_of(self, priority: Priority) -> int:
        """Waiting rows of one priority."""
        return self._num_rows[priority]

    def holds(self, request: R) -> bool:
        """True if some of its rows wait here."""
        queue = self._contexts.get(id(request.context))
        return queue is not None and request in queue.fifo(request.priority).waiting

    def add(self, request: R) -> None:
        """Put a request at the end of its FIFO."""
        assert request.num_rows >= 1, "a request's rows are checked before it is queued"
        queue = self._contexts.get(id(request.context))
        if queue is None:
            queue = self._contexts[id(request.context)] = ContextQueue(self._cost.of(request.context))
        if request.priority is Priority.BULK:
            queue.bulk.add(request, 0)
        else:
            queue.interactive.add(request, self._num_bulk_batches - self._bulk_in_flight)
            self._num_interactive += 1
            self._num_delayed += self._bulk_in_flight
        self.num_requests += 1
        self._num_rows[request.priority] += request.num_rows
        self._recount(queue)
        self._deadlines.add(request, self.num_requests)

    def remove(self, request: R) -> bool:
        """Take out the remaining rows of a request, wherever it stands; False if none of its rows wait."""
        queue = self._contexts.get(id(request.context))
        if queue is None:
            return False
        fifo = queue.fifo(request.priority)
        epoch = fifo.waiting.get(request)
        if epoch is None:
            return False
        self._num_rows[request.priority] -= fifo.remove(request)
        self._count_out(request, epoch)
        self._recount(queue)
        return True

    def expire(self, now: float) -> list[R]:
        """Take out the requests whose deadline has passed, since an answer could only come too late."""
        passed = self._deadlines.pop(now)
        for request in passed:
            self.remove(request)
        return passed

    def next_expiry_at(self) -> float | None:
        """The earliest deadline of a waiting request."""
        return self._deadlines.earliest()

    def clear(self) -> list[R]:
        """Take out all requests."""
        fifos = (fifo for queue in self._contexts.values() for fifo in (queue.interactive, queue.bulk))
        left = [request for fifo in fifos for request in fifo.waiting]
        self._contexts.clear()
        self._reset()
        return left

    def next_cut_at(self) -> float | None:
        """When `cut` next gives a batch if nothing is added or removed; None: never. A time in the past means now."""
        return min((self._ready_at(queue) for queue in self._contexts.values()), default=None)

    def stop_waiting(self) -> None:
        """No more requests will arrive: from now on every context is ready."""
        self._delay_s = 0.0

    def fills_batch(self, context: FittedContext) -> bool:
        """Whether as many rows of this context wait as fit into a batch."""
        queue = self._contexts.get(id(context))
        return queue is not None and queue.num_rows >= queue.cost.row_budget

    def is_full(self, now: float) -> bool:
        """Whether the next batch holds as many interactive rows as fit, so that waiting cannot gain any."""
        queue, _ = self._turn(now, math.inf)
        return queue is not None and queue.interactive.num_rows >= queue.cost.row_budget

    def end_bulk(self) -> None:
        """No batch in flight holds bulk rows any more."""
        self._bulk_in_flight = False

    def cut(self, now: float, busy_s: float | None = None) -> list[Slice[R]]:
        """Take out the next batch; empty if waiting may gain rows, or nothing waits.

        A device that is not free begins with it in `busy_s`. Then it is empty too where bulk rows must not go yet.
        """
        if busy_s is None:
            self._bulk_in_flight = False
        bulk_ahead_s = busy_s if busy_s is not None and self._bulk_in_flight else 0.0
        queue, due = self._turn(now, bulk_ahead_s)
        if queue is None:
            return []
        slices: list[Slice[R]] = []
        most, bulk_rows = queue.cost.row_budget, 0
        limit = self._limits.max_bulk_rows(queue.cost, bulk_ahead_s) if queue.bulk else 0
        if queue is due and not self._num_delayed:
            # Half of the batch, or what the interactive ones leave.
            most, bulk_rows = limit, max(1, limit // 2, limit - queue.interactive.num_rows)
        num_rows = min(queue.interactive.num_rows, most - bulk_rows)
        if num_rows > limit:  # else bulk rows fill the row bucket
            num_rows = queue.cost.efficient_batch_rows(num_rows)
        self._take(queue, Priority.INTERACTIVE, num_rows, slices)
        if limit and not self._num_delayed and (due is None or due is queue):
            # Rows in the same row bucket as the interactive ones cost nothing more.
            free_rows = max(limit, queue.cost.padded(num_rows)) - num_rows
            if self._take(queue, Priority.BULK, bulk_rows or free_rows, slices):
                self._count_bulk_batch(queue, now)
        self._recount(queue)
        return slices

    def forecast(self, request: QueuedRequest) -> Forecast:
        """What the device would do before a request that came now, and for it.

        In O(1), and so pessimistic: interactive contexts with later deadlines count as served first. Bulk rows do not
        count for an interactive request, which meets one bounded batch of them at most.
        """
        queue = self._contexts.get(id(request.context))
        cost = self._cost.of(request.context) if queue is None else queue.cost
        if request.priority is Priority.BULK:
            num_waiting, waiting_s = (queue.bulk.num_rows, queue.bulk_s) if queue is not None else (0, 0.0)
            own_s = cost.predict_all(num_waiting + request.num_rows, self._limits.max_bulk_rows(cost)) - waiting_s
            return Forecast(self._interactive_s + self._bulk_s, own_s, 0.0)
        num_waiting, waiting_s = (queue.interactive.num_rows, queue.interactive_s) if queue is not None else (0, 0.0)
        num_rows, budget = num_waiting + request.num_rows, cost.row_budget
        if num_rows <= budget:
            all_s = last_s = cost.predict(num_rows)
        else:
            all_s, last_s = cost.predict_all(num_rows, budget), cost.predict((num_rows - 1) % budget + 1)
        return Forecast(self._interactive_s, all_s - waiting_s, max(0.0, cost.typical_s - last_s))

    def seconds_before_turn(self, request: QueuedRequest) -> float:
        """`Forecast.before_s`, counting only contexts whose turn comes first; O(contexts)."""
        turn, is_bulk = turn_of(request, self._limits), request.priority is Priority.BULK
        return sum(
            queue.times(self._limits).before(turn, is_own=queue.cost.context is request.context, is_bulk=is_bulk)
            for queue in self._contexts.values()
        )

    def waiting_times(self, context: FittedContext) -> WaitingTimes | None:
        """The waiting work of one context; None where it has none."""
        queue = self._contexts.get(id(context))
        return None if queue is None else queue.times(self._limits)

    def max_batch_rows(self, request: QueuedRequest, cost: ContextCost) -> int:
        """Most rows of a request in one batch; `cost` is that of its context."""
        return self._limits.max_bulk_rows(cost) if request.priority is Priority.BULK else cost.row_budget

    def _turn(self, now: float, bulk_ahead_s: float) -> tuple[ContextQueue[R] | None, ContextQueue[R] | None]:
        """The context with the next turn, and the one whose bulk rows are due for the longest time."""
        interactive: ContextQueue[R] | None = None
        bulk = due = interactive
        interactive_turn = bulk_turn = math.inf
        due_since = now - self._limits.max_bulk_wait_s
        for queue in self._contexts.values():
            if self._delay_s and self._ready_at(queue) > now:
                continue
            if queue.interactive:
                turn = turn_of(queue.interactive.head, self._limits)
                if interactive is None or turn < interactive_turn:
                    interactive, interactive_turn = queue, turn
            if queue.bulk and (not bulk_ahead_s or self._limits.max_bulk_rows(queue.cost, bulk_ahead_s)):
                turn = turn_of(queue.bulk.head, self._limits)
                if bulk is None or turn < bulk_turn:
                    bulk, bulk_turn = queue, turn
                if queue.bulk_waits_since <= due_since:
                    due_since, due = queue.bulk_waits_since, queue
        if due is not None and not self._num_delayed:
            return due, due
        return interactive or bulk, due

    def _ready_at(self, queue: ContextQueue[R]) -> float:
        arrived_at = queue.oldest_arrival
        if not self._delay_s or queue.num_rows >= queue.cost.row_budget:
            return arrived_at
        if queue.interactive and queue.interactive.waiting[queue.interactive.head] < self._num_bulk_batches:
            return arrived_at  # it waited behind bulk rows, and they wait for it
        head = (queue.interactive or queue.bulk).head
        latest = head.deadline - queue.cost.predict(queue.num_rows)
        return min(arrived_at + self._delay_s, max(latest, arrived_at))

    def _take(self, queue: ContextQueue[R], priority: Priority, max_rows: int, slices: list[Slice[R]]) -> int:
        """Move rows from a FIFO into a batch; returns how many."""
        fifo = queue.fifo(priority)
        num_rows = fifo.num_rows
        for request, epoch in fifo.take(max_rows, slices):
            self._count_out(request, epoch)
        num_rows -= fifo.num_rows
        self._num_rows[priority] -= num_rows
        return num_rows

    def _count_out(self, request: R, epoch: int) -> None:
        self.num_requests -= 1
        if request.priority is Priority.INTERACTIVE:
            self._num_interactive -= 1
            self._num_delayed -= epoch < self._num_bulk_batches

    def _count_bulk_batch(self, queue: ContextQueue[R], now: float) -> None:
        queue.bulk_served_at = now
        self._num_bulk_batches += 1
        self._num_delayed = self._num_interactive
        self._bulk_in_flight = True

    def _recount(self, queue: ContextQueue[R]) -> None:
        """After the rows of a context changed: update its seconds, and drop it where no row is left."""
        interactive_s, bulk_s = queue.interactive_s, queue.bulk_s
        queue.recount(self._limits)
        self._interactive_s += queue.interactive_s - interactive_s
        self._bulk_s += queue.bulk_s - bulk_s
        if not (queue.interactive or queue.bulk):
            del self._contexts[id(queue.cost.context)]
            if not self._contexts:
                self._interactive_s = self._bulk_s = 0.0  # sums of floats drift
