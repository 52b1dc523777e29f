"""Any sequence of arrivals, departures, deadlines and cuts: what the head of `queue.py` promises always holds."""

import math
from collections import Counter
from typing import NamedTuple

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from queue_harness import BULK, INTERACTIVE, A, B, C, Pieces, Queue, Request, cost_model, cost_s, queue_of

from serve.batching.limits import BULK_COST_FACTOR
from serve.core import Priority
from serve.engine.fake import FakeContext

CONTEXTS = (A, B, C)
PATIENCE_S = 2.0


class Flight(NamedTuple):
    """A batch on the device, or ahead."""

    has_bulk: bool
    seconds: float


class QueueMachine(RuleBasedStateMachine):
    """Beside the queue stands a model: requests in order of arrival, and how many of their rows were cut."""

    @initialize(
        max_batch_rows=st.integers(1, 12),
        delay_s=st.sampled_from([0.0, 0.25, 2.0]),
        bound_s=st.sampled_from([None, 1e-9, cost_s(4), 1.0]),
        bulk_wait_s=st.sampled_from([0.0, 0.5, 5.0]),
        measured=st.booleans(),
    )
    def begin(
        self, max_batch_rows: int, delay_s: float, bound_s: float | None, bulk_wait_s: float, measured: bool
    ) -> None:
        self.max_batch_rows, self.delay_s, self.bulk_wait_s = max_batch_rows, delay_s, bulk_wait_s
        self.cost = cost_model(max_batch_rows, *CONTEXTS) if measured else cost_model(max_batch_rows)
        self.bound_s = BULK_COST_FACTOR * self.cost.of(A).predict(1) if bound_s is None else bound_s
        self.queue: Queue = queue_of(
            cost=self.cost,
            max_queue_delay_s=delay_s,
            max_bulk_batch_s=bound_s,
            max_bulk_wait_s=bulk_wait_s,
            max_turn_delay_s=PATIENCE_S,
        )
        self.now = 0.0
        self.all: list[Request] = []
        self.waiting: list[Request] = []
        self.cut_rows: Counter[Request] = Counter()
        self.outcomes: dict[Request, str] = {}
        self.bulk_batches_behind: Counter[Request] = Counter()
        self.in_flight: list[Flight] = []

    @rule(seconds=st.sampled_from([0.0, 0.125, 0.25, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        context=st.sampled_from(CONTEXTS),
        num_rows=st.integers(1, 30),
        time_s=st.sampled_from([0.125, 1.0, 3.0, math.inf]),
        priority=st.sampled_from(Priority),
    )
    def add(self, context: FakeContext, num_rows: int, time_s: float, priority: Priority) -> None:
        request = Request(context, num_rows, self.now, self.now + time_s, priority)
        self.queue.add(request)
        self.waiting.append(request)
        self.all.append(request)
        self.bulk_batches_behind[request] = int(any(flight.has_bulk for flight in self.in_flight))

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Any request at all: waiting, cut in part or whole, removed before."""
        request = data.draw(st.sampled_from(self.all))
        assert self.queue.remove(request) == (request in self.waiting)
        if request in self.waiting:
            self._leave(request, "removed")

    @rule()
    def expire(self) -> None:
        due = [request for request in self.waiting if request.deadline <= self.now]
        passed = self.queue.expire(self.now)
        assert sorted(map(id, passed)) == sorted(map(id, due))
        for request in passed:
            self._leave(request, "expired")

    @rule()
    def cut(self) -> None:
        """The device has become free."""
        self.in_flight.clear()
        next_cut_at = self.queue.next_cut_at()
        batch: Pieces = list(self.queue.cut(self.now))
        # The one exception: with nobody left behind, the device was idle.
        assert bool(batch) == (next_cut_at is not None and next_cut_at <= self.now)
        if batch:
            self._check(batch, 0.0)
            self._apply(batch)

    @precondition(lambda self: len(self.in_flight) == 1)
    @rule(done=st.sampled_from([0.0, 0.5, 0.9, 0.999]))
    def cut_ahead(self, done: float) -> None:
        """Behind a batch of which a share is done."""
        [front] = self.in_flight
        busy_s = (1 - done) * front.seconds
        next_cut_at = self.queue.next_cut_at()
        batch: Pieces = list(self.queue.cut(self.now, busy_s))
        is_ready = next_cut_at is not None and next_cut_at <= self.now
        assert is_ready or not batch
        if batch:
            self._check(batch, busy_s if front.has_bulk else 0.0)
            self._apply(batch)
        elif is_ready and not self.delay_s:
            assert all(request.priority is BULK for request in self.waiting), "only bulk rows may have to wait"

    @precondition(lambda self: len(self.in_flight) == 2)
    @rule()
    def end(self) -> None:
        """The older of two batches ends."""
        self.in_flight.pop(0)
        if not self.in_flight[0].has_bulk:
            self.queue.end_bulk()

    @precondition(lambda self: self.waiting)
    @rule()
    def a_full_batch_is_known(self) -> None:
        rows = Counter(r.context for r in self.waiting if r.priority is INTERACTIVE for _ in range(self._left(r)))
        full = {context for context in CONTEXTS if rows[context] >= self.cost.of(context).row_budget}
        if self.queue.is_full(self.now):
            assert full
        for context in full:
            assert self.queue.fills_batch(context)

    @precondition(lambda self: self.waiting)
    @rule()
    def sleep_until_the_next_cut(self) -> None:
        next_cut_at = self.queue.next_cut_at()
        assert next_cut_at is not None
        oldest = self.waiting[0]
        assert next_cut_at <= oldest.arrived_at + self.delay_s, "nobody waits for company longer than the delay"
        self.now = max(self.now, next_cut_at)
        self.cut()

    @rule(num_rows=st.integers(2, 12), context=st.sampled_from(CONTEXTS))
    def run_out_of_memory(self, num_rows: int, context: FakeContext) -> None:
        self.cost.of(context).lower_budget(max(num_rows, 2), self.now)

    def _left(self, request: Request) -> int:
        return request.num_rows - self.cut_rows[request]

    def _check(self, batch: Pieces, bulk_ahead_s: float) -> None:
        [context] = {request.context for request, _, _ in batch}
        cost = self.cost.of(context)
        num_rows = self._rows(batch)
        assert 1 <= num_rows <= cost.row_budget <= self.max_batch_rows
        for priority in Priority:
            self._check_order([piece for piece in batch if piece[0].priority is priority], context, priority)
        bulk = [piece for piece in batch if piece[0].priority is BULK]
        interactive = [piece for piece in batch if piece[0].priority is INTERACTIVE]
        if bulk:
            interactive_s = cost.predict(self._rows(interactive)) if interactive else 0.0
            seconds = cost.predict(num_rows)
            assert num_rows == 1 or seconds <= max(self.bound_s - bulk_ahead_s, interactive_s) + 1e-12
            assert not bulk_ahead_s or seconds <= max(self.bound_s - bulk_ahead_s, interactive_s) + 1e-12
            left = self._left_behind(batch)
            assert not any(self.bulk_batches_behind[request] for request in left), "behind one bulk batch at most"
        else:
            self._check_turn(context, batch)

    def _check_order(self, pieces: Pieces, context: FakeContext, priority: Priority) -> None:
        queued = [r for r in self.waiting if r.context is context and r.priority is priority]
        assert [request for request, _, _ in pieces] == queued[: len(pieces)], "first come, first served"
        for request, start, stop in pieces:
            assert start == self.cut_rows[request], "slices follow each other"
            assert start < stop <= request.num_rows
        assert all(stop == request.num_rows for request, _, stop in pieces[:-1]), "only the last is split"

    def _check_turn(self, context: FakeContext, batch: Pieces) -> None:
        """Without delay, the oldest request of an interactive batch has the earliest deadline of all the oldest."""
        if self.delay_s:
            return
        heads = {
            id(candidate): next((r for r in self.waiting if r.context is candidate and r.priority is INTERACTIVE), None)
            for candidate in CONTEXTS
        }
        turns = [min(head.deadline, head.arrived_at + PATIENCE_S) for head in heads.values() if head is not None]
        assert min(batch[0][0].deadline, batch[0][0].arrived_at + PATIENCE_S) == min(turns)
        assert heads[id(context)] is batch[0][0]

    def _left_behind(self, batch: Pieces) -> list[Request]:
        whole = {request for request, _, stop in batch if stop == request.num_rows}
        return [r for r in self.waiting if r.priority is INTERACTIVE and r not in whole]

    def _apply(self, batch: Pieces) -> None:
        for request, _, stop in batch:
            self.cut_rows[request] = stop
            if stop == request.num_rows:
                self._leave(request, "cut")
        [context] = {request.context for request, _, _ in batch}
        has_bulk = any(request.priority is BULK for request, _, _ in batch)
        self.in_flight.append(Flight(has_bulk, self.cost.of(context).predict(self._rows(batch))))
        if has_bulk:
            for request in self.waiting:
                self.bulk_batches_behind[request] += request.priority is INTERACTIVE

    def _rows(self, pieces: Pieces) -> int:
        return sum(stop - start for _, start, stop in pieces)

    def _leave(self, request: Request, outcome: str) -> None:
        assert request not in self.outcomes, "one outcome each"
        self.outcomes[request] = outcome
        self.waiting.remove(request)

    @invariant()
    def counts_are_exact(self) -> None:
        assert self.queue.num_requests == len(self.waiting)
        for priority in Priority:
            rows = sum(r.num_rows - self.cut_rows[r] for r in self.waiting if r.priority is priority)
            assert self.queue.num_rows_of(priority) == rows
        earliest = min((r.deadline for r in self.waiting if r.deadline < math.inf), default=None)
        assert self.queue.next_expiry_at() == earliest

    def teardown(self) -> None:
        """fault 7: every request ends with one outcome, and the last cuts empty the queue."""
        self.queue.stop_waiting()
        self.delay_s = 0.0
        while self.waiting:
            self.cut()
        assert set(self.outcomes) == set(self.all)
        assert all(self.cut_rows[r] == r.num_rows for r, outcome in self.outcomes.items() if outcome == "cut")
        assert self.queue.clear() == []


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
