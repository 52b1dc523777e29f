"""The batching policy. Plain calls: no loop, no sleep. "fault n" is row n of the table in notes/style.md, section 4."""

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve.batching import BatchQueue
from serve.engine.fake import FakeContext

A, B, C = FakeContext(), FakeContext(), FakeContext()


@dataclass(frozen=True, eq=False)
class Request:
    context: FakeContext
    num_rows: int = 1
    arrived_at: float = 0.0


def queue_of(*requests: Request, max_batch_rows: int = 10, delay_s: float = 0.0) -> BatchQueue[Request]:
    queue: BatchQueue[Request] = BatchQueue(max_batch_rows, delay_s)
    for request in requests:
        queue.add(request)
    return queue


def test_empty_queue_never_wakes_the_shell() -> None:
    """fault 4"""
    queue = queue_of(delay_s=1.0)
    assert queue.next_cut_at() is None
    assert queue.cut(1e9) == []


def test_lone_request_is_cut_at_once_without_delay() -> None:
    """fault 4"""
    request = Request(A, arrived_at=5.0)
    queue = queue_of(request)
    assert queue.next_cut_at() == 5.0
    assert queue.cut(5.0) == [request]
    assert queue.next_cut_at() is None


def test_delay_zero_still_batches_what_is_there() -> None:
    """fault 3"""
    requests = [Request(A, arrived_at=t) for t in (1.0, 2.0, 3.0)]
    assert queue_of(*requests, delay_s=0.0).cut(3.0) == requests


def test_delay_counts_from_the_oldest_arrival() -> None:
    """fault 2"""
    first, second = Request(A, arrived_at=1.0), Request(A, arrived_at=1.4)
    queue = queue_of(first, second, delay_s=0.5)
    assert queue.next_cut_at() == 1.5
    assert queue.cut(1.49) == []
    assert queue.cut(1.5) == [first, second]


def test_request_that_waited_for_the_device_does_not_wait_for_company_again() -> None:
    """fault 2"""
    request = Request(A, arrived_at=1.0)
    assert queue_of(request, delay_s=0.5).cut(9.0) == [request]


def test_full_batch_does_not_wait() -> None:
    requests = [Request(A, num_rows=5, arrived_at=1.0), Request(A, num_rows=5, arrived_at=1.1)]
    queue = queue_of(*requests, delay_s=60.0)
    assert queue.next_cut_at() == 1.0
    assert queue.cut(1.1) == requests


def test_batch_closed_by_one_that_does_not_fit_does_not_wait() -> None:
    requests = [Request(A, num_rows=6, arrived_at=1.0), Request(A, num_rows=6, arrived_at=1.1)]
    queue = queue_of(*requests, delay_s=60.0)
    assert queue.cut(1.1) == requests[:1]
    assert queue.cut(1.1) == []
    assert queue.next_cut_at() == 61.1


def test_one_that_does_not_fit_closes_the_batch_and_stays_at_the_head() -> None:
    small, large, tiny = Request(A, num_rows=3), Request(A, num_rows=8), Request(A, num_rows=1)
    queue = queue_of(small, large, tiny)
    assert queue.cut(0.0) == [small]
    assert queue.cut(0.0) == [large, tiny]


def test_context_of_the_oldest_request_has_its_turn() -> None:
    a1, b1, a2, c1, b2 = (Request(context, arrived_at=0.0) for context in (A, B, A, C, B))
    queue = queue_of(a1, b1, a2, c1, b2)
    assert [queue.cut(0.0) for _ in range(4)] == [[a1, a2], [b1, b2], [c1], []]


def test_a_flood_of_one_context_does_not_starve_another() -> None:
    flood = [Request(A, num_rows=10) for _ in range(3)]
    other = Request(B)
    queue = queue_of(flood[0], other, *flood[1:])
    assert queue.cut(0.0) == [flood[0]]
    queue.add(Request(A, num_rows=10))
    assert queue.cut(0.0) == [other]


def test_full_batch_goes_before_an_older_context_that_waits_for_company() -> None:
    lone, full = Request(A, arrived_at=1.0), Request(B, num_rows=10, arrived_at=1.2)
    queue = queue_of(lone, full, delay_s=0.5)
    assert queue.cut(1.2) == [full]
    assert queue.cut(1.2) == []
    assert queue.cut(1.5) == [lone]


def test_equal_contexts_that_are_not_the_same_do_not_share_a_batch() -> None:
    class Equal(FakeContext):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        def __hash__(self) -> int:
            return 1

    one, other = Request(Equal()), Request(Equal())
    assert queue_of(one, other).cut(0.0) == [one]


def test_removed_request_leaves_its_neighbours_in_order() -> None:
    """fault 1"""
    requests = [Request(A) for _ in range(3)]
    queue = queue_of(*requests)
    assert queue.remove(requests[1])
    assert not queue.remove(requests[1])
    assert queue.cut(0.0) == [requests[0], requests[2]]
    assert not queue.remove(requests[0])


def test_without_the_oldest_the_next_one_sets_the_delay() -> None:
    first, second = Request(A, arrived_at=1.0), Request(A, arrived_at=1.4)
    queue = queue_of(first, second, delay_s=0.5)
    queue.remove(first)
    assert queue.next_cut_at() == 1.9


def test_stop_waiting_makes_everything_ready() -> None:
    request = Request(A, arrived_at=1.0)
    queue = queue_of(request, delay_s=60.0)
    assert queue.cut(1.0) == []
    queue.stop_waiting()
    assert queue.cut(1.0) == [request]


@pytest.mark.parametrize("num_rows", [0, 11])
def test_rows_out_of_bounds_are_our_own_bug(num_rows: int) -> None:
    queue = queue_of()
    with pytest.raises(AssertionError):
        queue.add(Request(A, num_rows=num_rows))
    assert (queue.num_requests, queue.num_rows, queue.next_cut_at()) == (0, 0, None)


def test_a_request_cannot_be_queued_twice() -> None:
    request = Request(A)
    queue = queue_of(request)
    with pytest.raises(AssertionError):
        queue.add(request)
    assert queue.num_requests == 1


class QueueMachine(RuleBasedStateMachine):
    """Any sequence of arrivals, cancellations and cuts, beside a model that is a plain list in order of arrival."""

    @initialize(max_batch_rows=st.integers(1, 12), delay_s=st.sampled_from([0.0, 0.25, 2.0]))
    def begin(self, max_batch_rows: int, delay_s: float) -> None:
        self.max_batch_rows = max_batch_rows
        self.delay_s = delay_s
        self.now = 0.0
        self.waiting: list[Request] = []
        self.outcomes: dict[Request, str] = {}
        self.all: list[Request] = []
        self.queue: BatchQueue[Request] = BatchQueue(max_batch_rows, delay_s)

    @rule(seconds=st.sampled_from([0.0, 0.125, 0.25, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(context=st.sampled_from([A, B, C]), share=st.floats(0, 1))
    def add(self, context: FakeContext, share: float) -> None:
        request = Request(context, 1 + round(share * (self.max_batch_rows - 1)), self.now)
        self.queue.add(request)
        self.waiting.append(request)
        self.all.append(request)

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Any request at all: waiting, cut or removed before."""
        request = data.draw(st.sampled_from(self.all))
        assert self.queue.remove(request) == (request in self.waiting)
        if request in self.waiting:
            self._leave([request], "removed")

    @rule()
    def cut(self) -> None:
        next_cut_at = self.queue.next_cut_at()
        batch = self.queue.cut(self.now)
        assert bool(batch) == (next_cut_at is not None and next_cut_at <= self.now)
        if batch:
            self._check(batch)
        self._leave(batch, "cut")

    @precondition(lambda self: self.waiting)
    @rule()
    def sleep_until_the_next_cut(self) -> None:
        next_cut_at = self.queue.next_cut_at()
        assert next_cut_at is not None
        self.now = max(self.now, next_cut_at)
        oldest = self.waiting[0]
        assert next_cut_at <= oldest.arrived_at + self.delay_s, "nobody waits for company longer than the delay"
        self.cut()

    def _check(self, batch: list[Request]) -> None:
        context = batch[0].context
        queued = [request for request in self.waiting if request.context is context]
        assert batch == queued[: len(batch)], "first come, first served within a context"
        num_rows = sum(request.num_rows for request in batch)
        assert num_rows <= self.max_batch_rows
        following = queued[len(batch) : len(batch) + 1]
        assert all(num_rows + request.num_rows > self.max_batch_rows for request in following), "filled up"
        assert self._ready(context)
        older = self.waiting[: self.waiting.index(batch[0])]
        assert not any(self._ready(request.context) for request in older), "the oldest context that is ready"

    def _ready(self, context: FakeContext) -> bool:
        queued = [request for request in self.waiting if request.context is context]
        full = sum(request.num_rows for request in queued) >= self.max_batch_rows
        return full or queued[0].arrived_at + self.delay_s <= self.now

    def _leave(self, requests: list[Request], outcome: str) -> None:
        for request in requests:
            assert request not in self.outcomes, "one outcome each"
            self.outcomes[request] = outcome
            self.waiting.remove(request)

    @invariant()
    def counts_are_exact(self) -> None:
        assert self.queue.num_requests == len(self.waiting)
        assert self.queue.num_rows == sum(request.num_rows for request in self.waiting)

    def teardown(self) -> None:
        """fault 7: every request ends with one outcome, and the last cuts empty the queue."""
        self.queue.stop_waiting()
        self.delay_s = 0.0
        while self.waiting:
            self.cut()
        assert set(self.outcomes) == set(self.all)
        assert self.queue.clear() == []


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_clear_takes_everything_out() -> None:
    requests = [Request(A), Request(B), Request(A)]
    queue = queue_of(*requests)
    assert sorted(map(id, queue.clear())) == sorted(map(id, requests))
    assert (queue.num_requests, queue.num_rows, queue.next_cut_at()) == (0, 0, None)
