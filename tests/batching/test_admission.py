"""Who is let in, and what the others are told. Plain calls under a virtual clock."""

import math

import pytest
from queue_harness import BULK, A, B, Queue, Request, cost_model, cost_s, queue_of

from serve.batching import AdmissionController, AdmissionLimits, BatchWatchdog, CostModel
from serve.core.errors import DeadlineTooShort, Draining, Overloaded

MAX_ROWS = 8
MARGIN = 1.5
"""What is ahead counts as so much longer than it is predicted."""


class Door:
    """An admission controller and what it looks at."""

    def __init__(self, cost: CostModel | None = None, bulk_s: float | None = None, **limits: float | None) -> None:
        self.cost = cost or cost_model(MAX_ROWS, A, B)
        self.queue: Queue = queue_of(cost=self.cost, max_bulk_batch_s=bulk_s)
        self.watchdog = BatchWatchdog(20)
        all_limits = {"max_requests": 100, **limits}
        self.admission: AdmissionController[Request] = AdmissionController(
            self.queue,
            self.cost,
            self.watchdog,
            AdmissionLimits(**all_limits),  # type: ignore[arg-type]
        )

    def ask(self, num_rows: int = 1, time_s: float = math.inf, now: float = 0.0, **request: object) -> Request:
        asked = Request(request.pop("context", A), num_rows, now, now + time_s, **request)  # type: ignore[arg-type]
        self.admission.acquire(asked, now)
        self.queue.add(asked)
        return asked

    def refusal(self, *args: float, **request: object) -> Overloaded:
        with pytest.raises(Overloaded) as refused:
            self.ask(*args, **request)  # type: ignore[arg-type]
        return refused.value

    def too_short(self, *args: float, **request: object) -> str:
        with pytest.raises(DeadlineTooShort) as refused:
            self.ask(*args, **request)  # type: ignore[arg-type]
        return str(refused.value)

    def run(self, *num_rows: int, seconds: float | None = None) -> None:
        """Batches of A, each at the time that its warm-up promised unless another is given."""
        for rows in num_rows:
            self.cost.of(A).learn(rows, cost_s(rows) if seconds is None else seconds, 0.0)


def test_one_more_than_the_limit_is_refused() -> None:
    """fault 9"""
    door = Door(max_requests=2)
    first = door.ask()
    door.ask()
    refusal = door.refusal()
    assert refusal.reason == "requests"
    assert refusal.retry_after_s == pytest.approx(cost_s(2))
    assert len(door.admission.ongoing) == 2
    door.admission.release(first)
    door.ask()


def test_a_request_is_released_once() -> None:
    door = Door()
    first, second = door.ask(3), door.ask(4)
    door.admission.release(first)
    with pytest.raises(KeyError):
        door.admission.release(first)
    assert door.admission.ongoing == {second}
    assert door.admission.num_rows == 4


def test_closed_refuses_as_draining_even_where_it_is_full() -> None:
    door = Door(max_requests=1)
    first = door.ask()
    door.admission.close()
    with pytest.raises(Draining):
        door.ask()
    door.admission.release(first)
    with pytest.raises(Draining):
        door.ask()


def test_rows_are_counted_where_a_limit_is_set() -> None:
    door = Door(max_rows=10)
    large = door.ask(25)  # alone it is answered, however large
    assert door.refusal(1).reason == "rows"
    door.admission.release(large)
    door.ask(6)
    door.ask(4)
    assert door.refusal(1).reason == "rows"


def test_an_answer_that_would_be_late_is_refused_and_told_by_how_much() -> None:
    door = Door()
    for _ in range(3):
        door.ask(MAX_ROWS, 1.0)
    door.watchdog.begin(cost_s(MAX_ROWS), 0.0)
    ahead_s = MARGIN * 4 * cost_s(MAX_ROWS)
    refusal = door.refusal(MAX_ROWS, ahead_s)
    assert refusal.reason == "deadline"
    assert refusal.retry_after_s == pytest.approx(cost_s(MAX_ROWS)), "by then what is ahead is shorter by so much"
    assert "the answer may take 126 ms, the deadline is in 108 ms" in str(refusal)
    door.ask(MAX_ROWS, ahead_s + cost_s(MAX_ROWS) + 1e-9)


def test_the_batch_on_the_device_counts_for_what_is_left_of_it() -> None:
    door = Door()
    door.watchdog.begin(0.1, 0.0)
    time_s = MARGIN * 0.05 + cost_s(1) + 1e-9
    assert door.refusal(1, time_s, 0.04).reason == "deadline"
    door.ask(1, time_s, 0.05)


def test_a_batch_that_is_late_is_expected_to_take_as_long_again() -> None:
    watchdog = BatchWatchdog(20)
    watchdog.begin(1.0, 10.0)
    assert [watchdog.remaining_s(now) for now in (10.0, 10.75, 11.0, 11.5, 20.0)] == [1.0, 0.25, 0.0, 0.5, 9.0]
    watchdog.end(20.0)
    assert watchdog.remaining_s(20.0) == 0.0


def test_only_contexts_that_go_first_count_before_a_refusal() -> None:
    door = Door()
    for _ in range(10):
        door.ask(MAX_ROWS, 100.0, context=B)
    door.ask(1, cost_s(1) + 1e-9)
    assert door.refusal(1, cost_s(1) + 1e-9, context=B)


def test_bulk_does_not_count_for_an_interactive_request() -> None:
    door = Door()
    door.ask(100, priority=BULK)
    door.ask(1, cost_s(1) + 1e-9)
    assert door.refusal(1, cost_s(1) + 1e-9, context=B, priority=BULK)


def test_rows_that_take_longer_than_the_request_has_are_said_to() -> None:
    """A 429 with Retry-After made callers ask for ever."""
    door = Door()
    door.run(MAX_ROWS)
    told = door.too_short(20, cost_s(MAX_ROWS))
    assert "20 rows take about 50 ms here, the deadline is in 18 ms; allow more time, or send fewer rows" in told
    door.ask(MAX_ROWS, 1.0)
    assert door.too_short(20, cost_s(MAX_ROWS)) == told, "whatever the load"


def test_rows_that_took_less_before_may_be_sent_again_when_the_estimate_is_doubted() -> None:
    """The machine is slow now, so it is not the request that is at fault."""
    door = Door()
    door.run(1)
    door.run(*[1] * 10, seconds=10 * cost_s(1))
    slow_s = door.cost.of(A).predict(1)
    refusal = door.refusal(1, 2 * cost_s(1))
    assert refusal.reason == "deadline"
    assert refusal.retry_after_s == pytest.approx(10 * slow_s)
    door.ask(1, 2 * cost_s(1), refusal.retry_after_s + 1e-9)


def test_bulk_rows_are_judged_by_the_batches_that_they_run_in() -> None:
    door = Door(bulk_s=cost_s(1))
    door.run(1, MAX_ROWS)
    time_s = 4 * cost_s(MAX_ROWS) + 1e-9
    assert "32 rows take about 352 ms" in door.too_short(4 * MAX_ROWS, time_s, priority=BULK)
    door.ask(4 * MAX_ROWS, time_s)


def test_a_value_of_the_warm_up_is_asked_once_and_while_the_device_is_idle() -> None:
    door = Door()
    time_s = cost_s(MAX_ROWS) / 40
    probe = door.ask(MAX_ROWS, time_s)
    assert door.too_short(MAX_ROWS, time_s), "the device is not idle"
    door.queue.remove(probe)
    door.run(MAX_ROWS)
    assert door.too_short(MAX_ROWS, time_s), "it was measured"
    assert door.too_short(1, cost_s(1) / 60), "no warm-up is as wrong as that"


def test_an_estimate_that_refuses_everybody_is_doubted_after_a_while() -> None:
    """Or a machine that was slow for a minute would refuse its callers for ever."""
    door = Door()
    door.run(1)
    time_s = cost_s(1) / 2
    assert door.too_short(1, time_s, 9 * cost_s(1))
    probe = door.ask(1, time_s, 11 * cost_s(1))
    assert door.too_short(1, time_s, 11 * cost_s(1)), "one at a time"
    [piece] = door.queue.cut(11 * cost_s(1))
    assert piece.request is probe
    for _ in range(20):
        door.cost.of(A).learn(1, cost_s(1) / 10, 1.0)
    door.ask(1, time_s, 1.0)


def test_the_work_that_waits_fits_into_the_default_timeout_whatever_deadlines_are_asked_for() -> None:
    door = Door(max_backlog_s=10 * cost_s(MAX_ROWS))
    for _ in range(11):
        door.ask(MAX_ROWS, 1e9)
    refusal = door.refusal(MAX_ROWS, 1e9)
    assert refusal.reason == "backlog"
    assert refusal.retry_after_s == pytest.approx(cost_s(MAX_ROWS))
    door.admission.set_max_backlog(B, 20 * cost_s(MAX_ROWS))
    door.ask(MAX_ROWS, 1e9, context=B)
    door.admission.set_max_backlog(A, 1.0)
    door.ask(MAX_ROWS, 1e9)


def test_where_nothing_was_measured_nobody_is_refused_for_time() -> None:
    door = Door(cost_model(MAX_ROWS))
    for _ in range(50):
        door.ask(1_000, 1e-6)


def test_a_batch_far_beyond_its_time_is_hung() -> None:
    watchdog = BatchWatchdog(hung_factor=20)
    watchdog.begin(1.0, 0.0)
    assert not watchdog.is_hung(20.0)
    assert watchdog.is_hung(20.1)
    watchdog.clear()
    watchdog.begin(0.01, 0.0)
    assert not watchdog.is_hung(9.9), "a stall of seconds is no hang"
    assert watchdog.is_hung(10.1)
    watchdog.clear()
    watchdog.begin(0.0, 0.0)
    assert not watchdog.is_hung(1e6), "nothing is known of how long it should take"
    watchdog.end(1e6)
    assert not watchdog.is_hung(1e6)
