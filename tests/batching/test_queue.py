"""The batching policy. Plain calls: no loop, no sleep. "fault n" is row n of the table in notes/style.md, section 4."""

import math

import pytest
from queue_harness import BULK, A, B, C, Request, cost_model, cost_s, queue_of, whole

from serve.batching import Slice
from serve.engine.fake import FakeContext


def test_empty_queue_never_wakes_the_shell() -> None:
    """fault 4"""
    queue = queue_of(max_queue_delay_s=1.0)
    assert queue.next_cut_at() is None
    assert queue.next_expiry_at() is None
    assert queue.cut(1e9) == []


def test_lone_request_is_cut_at_once_without_delay() -> None:
    """fault 4"""
    request = Request(A, arrived_at=5.0)
    queue = queue_of(request)
    assert queue.next_cut_at() == 5.0
    assert queue.cut(5.0) == [Slice(request, 0, 1)]
    assert queue.next_cut_at() is None


def test_delay_zero_still_batches_what_is_there() -> None:
    """fault 3"""
    requests = [Request(A, arrived_at=t) for t in (1.0, 2.0, 3.0)]
    assert queue_of(*requests).cut(3.0) == whole(*requests)


# --- waiting for company --------------------------------------------------------------------------------------------


def test_delay_counts_from_the_oldest_arrival() -> None:
    """fault 2"""
    first, second = Request(A, arrived_at=1.0), Request(A, arrived_at=1.4)
    queue = queue_of(first, second, max_queue_delay_s=0.5)
    assert queue.next_cut_at() == 1.5
    assert queue.cut(1.49) == []
    assert queue.cut(1.5) == whole(first, second)


def test_request_that_waited_for_the_device_does_not_wait_for_company_again() -> None:
    """fault 2"""
    request = Request(A, arrived_at=1.0)
    assert queue_of(request, max_queue_delay_s=0.5).cut(9.0) == whole(request)


@pytest.mark.parametrize("sizes", [(5, 5), (6, 6)], ids=["filled", "more than full"])
def test_full_batch_does_not_wait(sizes: tuple[int, int]) -> None:
    requests = [Request(A, num_rows, arrived_at) for num_rows, arrived_at in zip(sizes, (1.0, 1.1), strict=True)]
    queue = queue_of(*requests, max_queue_delay_s=60.0)
    assert queue.next_cut_at() == 1.0
    assert sum(stop - start for _, start, stop in queue.cut(1.1)) == 10
    assert queue.cut(1.1) == []


def test_a_deadline_ends_the_wait_while_it_can_still_be_kept() -> None:
    request = Request(A, arrived_at=1.0, deadline=1.4)
    queue = queue_of(request, cost=cost_model(8, A), max_queue_delay_s=60.0)
    assert queue.next_cut_at() == pytest.approx(1.4 - cost_s(1))
    assert queue.cut(1.38) == []
    assert queue.cut(1.4 - cost_s(1)) == whole(request)


def test_full_batch_goes_before_an_older_context_that_waits_for_company() -> None:
    lone, full = Request(A, arrived_at=1.0), Request(B, num_rows=10, arrived_at=1.2)
    queue = queue_of(lone, full, max_queue_delay_s=0.5)
    assert queue.cut(1.2) == whole(full)
    assert queue.cut(1.2) == []
    assert queue.cut(1.5) == whole(lone)


def test_without_the_oldest_the_next_one_sets_the_delay() -> None:
    first, second = Request(A, arrived_at=1.0), Request(A, arrived_at=1.4)
    queue = queue_of(first, second, max_queue_delay_s=0.5)
    queue.remove(first)
    assert queue.next_cut_at() == 1.9


def test_stop_waiting_makes_everything_ready() -> None:
    request = Request(A, arrived_at=1.0)
    queue = queue_of(request, max_queue_delay_s=60.0)
    assert queue.cut(1.0) == []
    queue.stop_waiting()
    assert queue.cut(1.0) == whole(request)


# --- splitting ------------------------------------------------------------------------------------------------------


def test_a_request_larger_than_a_batch_is_split_in_order() -> None:
    large, small = Request(A, num_rows=25), Request(A, num_rows=2)
    queue = queue_of(large, small)
    assert queue.cut(0.0) == [(large, 0, 10)]
    assert queue.num_rows == 17
    assert queue.cut(0.0) == [(large, 10, 20)]
    assert queue.cut(0.0) == [(large, 20, 25), (small, 0, 2)]
    assert queue.num_requests == queue.num_rows == 0


def test_the_room_that_is_left_is_filled_by_splitting() -> None:
    """Its rest is at the head of the next batch: nobody is overtaken and the split one loses nothing."""
    first, second, third = Request(A, num_rows=7), Request(A, num_rows=5), Request(A, num_rows=1)
    queue = queue_of(first, second, third)
    assert queue.cut(0.0) == [(first, 0, 7), (second, 0, 3)]
    assert queue.cut(0.0) == [(second, 3, 5), (third, 0, 1)]


def test_what_is_left_of_a_split_request_can_be_removed() -> None:
    large, small = Request(A, num_rows=25), Request(A, num_rows=2)
    queue = queue_of(large, small)
    queue.cut(0.0)
    assert queue.holds(large)
    assert queue.remove(large)
    assert not queue.remove(large)
    assert (queue.num_requests, queue.num_rows) == (1, 2)
    assert queue.cut(0.0) == whole(small)


def test_a_lower_budget_holds_from_the_next_cut_on() -> None:
    cost = cost_model(8, A)
    queue = queue_of(Request(A, num_rows=20), cost=cost)
    assert [(start, stop) for _, start, stop in queue.cut(0.0)] == [(0, 8)]
    cost.of(A).lower_budget(8, 0.0)
    assert [(start, stop) for _, start, stop in queue.cut(0.0)] == [(8, 12)]


def test_a_batch_is_not_padded_where_two_are_sooner_done() -> None:
    requests = [Request(A, 30), Request(A, 5)]
    queue = queue_of(*requests, cost=cost_model(64, A))
    assert cost_s(32) + cost_s(4) < cost_s(64)
    assert queue.cut(0.0) == [(requests[0], 0, 30), (requests[1], 0, 2)]
    assert queue.cut(0.0) == [(requests[1], 2, 5)]


def test_padding_that_bulk_fills_is_no_waste() -> None:
    interactive, bulk = Request(A, 35), Request(A, 100, priority=BULK)
    queue = queue_of(interactive, bulk, cost=cost_model(64, A), max_bulk_batch_s=cost_s(64))
    assert queue.cut(0.0) == [(interactive, 0, 35), (bulk, 0, 29)]


# --- whose turn -----------------------------------------------------------------------------------------------------


def test_the_context_whose_oldest_request_has_the_earliest_deadline_is_next() -> None:
    a = [Request(A, deadline=9.0), Request(A, deadline=1.0)]
    b, c = Request(B, deadline=5.0), Request(C, deadline=7.0)
    queue = queue_of(*a, b, c)
    assert [queue.cut(0.0) for _ in range(4)] == [whole(b), whole(c), whole(*a), []]


def test_of_equal_deadlines_the_first_to_come_is_next() -> None:
    a1, b1, a2, c1, b2 = (Request(context) for context in (A, B, A, C, B))
    queue = queue_of(a1, b1, a2, c1, b2)
    assert [queue.cut(0.0) for _ in range(4)] == [whole(a1, a2), whole(b1, b2), whole(c1), []]


def test_a_flood_of_one_context_does_not_starve_another() -> None:
    flood = [Request(A, num_rows=10, deadline=1.0 + i) for i in range(3)]
    other = Request(B, deadline=1.5)
    queue = queue_of(flood[0], other, *flood[1:])
    assert queue.cut(0.0) == whole(flood[0])
    assert queue.cut(0.0) == whole(other)


def test_who_could_wait_for_ever_does_not() -> None:
    patient = Request(A, deadline=math.inf)
    queue = queue_of(patient, max_turn_delay_s=5.0)
    for now in (0.0, 1.0, 2.0, 3.0, 4.0):
        hurried = Request(B, 10, arrived_at=now, deadline=now + 1.5)
        queue.add(hurried)
        if queue.cut(now) == whole(patient):
            assert now + 1.5 > 5.0
            return
    pytest.fail("A starves")


def test_equal_contexts_that_are_not_the_same_do_not_share_a_batch() -> None:
    class Equal(FakeContext):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        def __hash__(self) -> int:
            return 1

    one, other = Request(Equal()), Request(Equal())
    assert queue_of(one, other).cut(0.0) == whole(one)


# --- bulk -----------------------------------------------------------------------------------------------------------


def test_bulk_fills_the_room_that_interactive_rows_leave() -> None:
    bulk, interactive = Request(A, 100, priority=BULK), Request(A, 3)
    queue = queue_of(bulk, interactive, cost=cost_model(64, A), max_bulk_batch_s=cost_s(16))
    assert queue.cut(0.0) == [(interactive, 0, 3), (bulk, 0, 13)]
    assert queue.cut(0.0) == [(bulk, 13, 29)]


def test_a_batch_with_bulk_rows_is_bounded_in_cost_and_interactive_ones_are_not() -> None:
    cost = cost_model(64, A)
    interactive = Request(A, 64)
    queue = queue_of(interactive, Request(A, 100, priority=BULK), cost=cost, max_bulk_batch_s=cost_s(16))
    assert queue.cut(0.0) == whole(interactive)
    assert [stop - start for _, start, stop in queue.cut(0.0)] == [16]


def test_by_default_the_bound_is_four_times_one_row() -> None:
    queue = queue_of(Request(A, 100, priority=BULK), cost=cost_model(64, A))
    [(_, _, stop)] = queue.cut(0.0)
    assert cost_s(stop) <= 4 * cost_s(1) < cost_s(2 * stop)


def test_at_least_one_bulk_row_is_taken_however_slow() -> None:
    queue = queue_of(Request(A, 3, priority=BULK), cost=cost_model(64, A), max_bulk_batch_s=1e-9)
    assert [(start, stop) for _, start, stop in queue.cut(0.0)] == [(0, 1)]


def test_bulk_rows_ride_in_the_padding_of_a_batch_that_is_over_the_bound() -> None:
    interactive, bulk = Request(A, 60), Request(A, 100, priority=BULK)
    queue = queue_of(interactive, bulk, cost=cost_model(64, A), max_bulk_batch_s=cost_s(16))
    assert queue.cut(0.0) == [(interactive, 0, 60), (bulk, 0, 4)]


def test_where_nothing_was_measured_bulk_has_no_bound() -> None:
    queue = queue_of(Request(A, 100, priority=BULK), max_batch_rows=64)
    assert [stop for _, _, stop in queue.cut(0.0)] == [64]


def test_interactive_rows_of_any_context_go_before_bulk() -> None:
    bulk, interactive = Request(A, priority=BULK, deadline=1.0), Request(B, deadline=9.0)
    queue = queue_of(bulk, interactive)
    assert queue.cut(0.0) == whole(interactive)
    assert queue.cut(0.0) == whole(bulk)


def test_no_bulk_rides_while_one_who_waited_for_bulk_waits() -> None:
    """The batch of A has room, but B's request came while bulk was on the device."""
    bulk, a, b = Request(A, 20, priority=BULK), Request(A, deadline=1.0), Request(B, deadline=2.0)
    queue = queue_of(bulk)
    assert queue.cut(0.0) == [(bulk, 0, 10)]
    queue.add(a)
    queue.add(b)
    assert queue.cut(0.0) == whole(a)
    assert queue.cut(0.0) == whole(b)
    assert queue.cut(0.0) == [(bulk, 10, 20)]


def test_bulk_rides_at_once_where_nobody_else_waits() -> None:
    bulk, a = Request(A, 20, priority=BULK), Request(A, 2)
    queue = queue_of(bulk)
    queue.cut(0.0)
    queue.add(a)
    assert queue.cut(0.0) == [(a, 0, 2), (bulk, 10, 18)]


def test_one_who_waited_for_bulk_does_not_wait_for_company() -> None:
    bulk = Request(B, 10, priority=BULK)
    queue = queue_of(bulk, max_queue_delay_s=5.0)
    assert queue.cut(0.0) == whole(bulk)
    late = Request(A, arrived_at=0.0)
    queue.add(late)
    assert queue.cut(0.1) == whole(late)


def test_bulk_that_waited_too_long_has_a_turn_and_its_context_shares_it() -> None:
    bulk = Request(A, 100, arrived_at=0.0, priority=BULK)
    queue = queue_of(bulk, max_bulk_wait_s=1.0)
    for now in (0.0, 0.5, 0.9):
        flood = Request(B, 10, arrived_at=now)
        queue.add(flood)
        assert queue.cut(now) == whole(flood)
    flood, mate = Request(B, 10, arrived_at=1.0, deadline=2.0), Request(A, 9, arrived_at=1.0)
    queue.add(flood)
    queue.add(mate)
    assert queue.cut(1.0) == [(mate, 0, 5), (bulk, 0, 5)]
    assert queue.cut(1.0) == whole(flood)
    assert queue.cut(1.0)[0] == (mate, 5, 9)


def test_a_turn_of_bulk_counts_as_service() -> None:
    bulk = Request(A, 100, priority=BULK)
    queue = queue_of(bulk, max_bulk_wait_s=1.0)
    assert queue.cut(5.0) == [(bulk, 0, 10)]
    floods = [Request(B, 10, arrived_at=5.0) for _ in range(3)]
    for flood in floods:
        queue.add(flood)
    assert queue.cut(5.2) == whole(floods[0])
    assert queue.cut(5.9) == whole(floods[1])
    assert queue.cut(5.95) == whole(floods[2])


def test_due_bulk_is_not_overtaken_by_bulk_that_rides_along() -> None:
    """B always has interactive rows and bulk of its own; A has bulk only."""
    waiting = Request(A, 5, arrived_at=0.0, priority=BULK)
    queue = queue_of(waiting, Request(B, 1_000, arrived_at=2.0, priority=BULK), max_bulk_wait_s=1.0)
    now = 2.0
    for _ in range(4):
        queue.add(Request(B, 1, arrived_at=now))
        if any(request is waiting for request, _, _ in queue.cut(now)):
            return
        now += 0.1
    pytest.fail("A's bulk starves")


# --- leaving --------------------------------------------------------------------------------------------------------


def test_removed_request_leaves_its_neighbours_in_order() -> None:
    """fault 1"""
    requests = [Request(A) for _ in range(3)]
    queue = queue_of(*requests)
    assert queue.remove(requests[1])
    assert not queue.remove(requests[1])
    assert queue.cut(0.0) == whole(requests[0], requests[2])
    assert not queue.remove(requests[0])


def test_who_is_removed_delays_no_bulk() -> None:
    bulk, waited = Request(A, 20, priority=BULK), Request(B)
    queue = queue_of(bulk)
    queue.cut(0.0)
    queue.add(waited)
    queue.add(other := Request(A, arrived_at=0.0))
    queue.remove(waited)
    assert queue.cut(0.0) == [(other, 0, 1), (bulk, 10, 19)]


def test_expired_requests_leave_in_the_order_of_their_deadlines() -> None:
    late, early, never = Request(A, deadline=2.0), Request(B, deadline=1.0), Request(A)
    queue = queue_of(late, never, early)
    assert queue.next_expiry_at() == 1.0
    assert queue.expire(0.9) == []
    assert queue.expire(2.0) == [early, late]
    assert queue.expire(2.0) == []
    assert queue.next_expiry_at() is None
    assert queue.cut(2.0) == whole(never)


def test_what_is_left_of_a_split_request_expires() -> None:
    large = Request(A, num_rows=25, deadline=1.0)
    queue = queue_of(large)
    queue.cut(0.0)
    assert queue.expire(1.0) == [large]
    assert queue.num_rows == 0


def test_requests_that_left_are_forgotten() -> None:
    """However long their deadlines, only a few of those who were answered are kept."""
    queue = queue_of()
    for _ in range(1_000):
        queue.add(Request(A, deadline=1e6))
        queue.cut(0.0)
    assert len(queue._deadlines._heap) < 100


@pytest.mark.parametrize("num_rows", [0, -1])
def test_no_rows_are_our_own_bug(num_rows: int) -> None:
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


def test_clear_takes_everything_out() -> None:
    requests = [Request(A), Request(B), Request(A, priority=BULK)]
    queue = queue_of(*requests)
    assert sorted(map(id, queue.clear())) == sorted(map(id, requests))
    assert (queue.num_requests, queue.num_rows, queue.next_cut_at()) == (0, 0, None)


# --- what a newcomer is told ----------------------------------------------------------------------------------------


def test_the_forecast_counts_the_seconds_of_the_rows_that_go_first() -> None:
    cost = cost_model(8, A, B)
    queue = queue_of(
        Request(A, 9, deadline=1.0), Request(B, 4, deadline=9.0), Request(B, 3, priority=BULK), cost=cost,
        max_bulk_batch_s=cost_s(2),
    )  # fmt: skip
    newcomer = Request(A, 1, deadline=5.0)
    assert queue.forecast(newcomer).company_s == 0.0, "no batch was seen yet"
    before_a, before_b = cost_s(8) + cost_s(1), cost_s(4)
    before_s, own_s, _ = queue.forecast(newcomer)
    assert before_s == pytest.approx(before_a + before_b)
    assert own_s == pytest.approx(cost_s(2) - cost_s(1)), "it joins the second batch"
    assert queue.seconds_before_turn(newcomer) == pytest.approx(before_a), "B has more time"
    bulk = Request(A, 4, deadline=math.inf, priority=BULK)
    before_bulk = cost_s(2) + cost_s(1)
    before_s, own_s, _ = queue.forecast(bulk)
    assert before_s == pytest.approx(before_a + before_b + before_bulk)
    assert own_s == pytest.approx(2 * cost_s(2))
    assert queue.seconds_before_turn(bulk) == pytest.approx(before_a + before_b + before_bulk)


def test_company_is_expected_as_of_late() -> None:
    cost = cost_model(8, A)
    for _ in range(50):
        cost.of(A).learn(8, cost_s(8), 0.0)
    queue = queue_of(Request(A, 9), cost=cost)
    assert queue.forecast(Request(A, 1)).company_s == pytest.approx(cost_s(8) - cost_s(2), rel=1e-3)
    assert queue.forecast(Request(A, 7)).company_s == pytest.approx(0.0, abs=1e-9), "the batch is full already"
    assert queue.forecast(Request(A, 1, priority=BULK)).company_s == 0.0
