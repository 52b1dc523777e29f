"""Who waits, and how long at most, while the device is never idle: a small simulation under a virtual clock."""

import hypothesis.strategies as st
from hypothesis import given, settings
from queue_harness import BULK, INTERACTIVE, A, B, C, Request, cost_model, cost_s, queue_of

MAX_ROWS = 8
BATCH_S = cost_s(MAX_ROWS)
TIMEOUT_S = 1.0


@settings(max_examples=60)
@given(
    contexts=st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=4),
    bulk_contexts=st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=3, unique=True),
    rows_each=st.integers(1, 20),
    bulk_wait_s=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_bulk_never_starves_under_an_overload_of_interactive_rows(
    contexts: list, bulk_contexts: list, rows_each: int, bulk_wait_s: float
) -> None:
    """Each context's bulk is served once in `max_bulk_wait_s` and a timeout for each of those who are due."""
    queue = queue_of(cost=cost_model(MAX_ROWS, A, B, C), max_bulk_wait_s=bulk_wait_s)
    now = 0.0
    for context in bulk_contexts:
        queue.add(Request(context, 10_000, now, priority=BULK))
    served_at = dict.fromkeys(map(id, bulk_contexts), 0.0)
    longest_s = bulk_wait_s + len(bulk_contexts) * (TIMEOUT_S + 2 * BATCH_S)
    for _ in range(400):
        for context in contexts:
            queue.add(Request(context, rows_each, now, now + TIMEOUT_S))
        queue.expire(now)
        batch = queue.cut(now)
        for request, _, _ in batch:
            if request.priority is BULK:
                served_at[id(request.context)] = now
        assert all(now - at <= longest_s for at in served_at.values())
        now += BATCH_S


@settings(max_examples=60)
@given(data=st.data(), timeouts_s=st.lists(st.floats(0.1, 5.0), min_size=3, max_size=3))
def test_every_context_has_its_turn_before_its_deadline_where_there_is_capacity(
    data: st.DataObject, timeouts_s: list[float]
) -> None:
    """A batch's worth of rows arrives for each batch that is cut; nobody expires but by waiting for such a batch."""
    queue = queue_of(cost=cost_model(MAX_ROWS, A, B, C))
    now = 0.0
    for _ in range(100):
        index = data.draw(st.integers(0, 2))
        queue.add(Request((A, B, C)[index], MAX_ROWS, now, now + timeouts_s[index]))
        assert queue.cut(now), "the device is not left idle while rows wait"
        now += BATCH_S
        assert queue.num_requests == 0


@given(
    interactive_every=st.integers(1, 5),
    num_rows=st.integers(1, MAX_ROWS),
    context=st.sampled_from([A, B]),
)
def test_an_interactive_row_waits_for_one_bulk_batch_at_most(interactive_every: int, num_rows: int, context) -> None:
    """Endless bulk of two contexts; an interactive request is always in the batch after the one it found."""
    queue = queue_of(
        Request(A, 10_000, priority=BULK), Request(B, 10_000, priority=BULK), cost=cost_model(MAX_ROWS, A, B)
    )
    now = 0.0
    for step in range(60):
        batch = queue.cut(now)
        assert batch
        now += BATCH_S
        if step % interactive_every == 0:
            request = Request(context, num_rows, now, now + TIMEOUT_S, INTERACTIVE)
            queue.add(request)
            assert any(piece.request is request for piece in queue.cut(now))
            now += BATCH_S


def test_not_even_one_bulk_row_goes_ahead_beside_another_where_both_exceed_the_bound() -> None:
    """One row is always allowed on a free device. Ahead of it waits the row that is there, and both count."""
    both = [Request(A, 1, priority=BULK), Request(A, 1, priority=BULK)]
    queue = queue_of(*both, cost=cost_model(1, A), max_bulk_batch_s=0.014)
    assert len(queue.cut(0.0)) == 1
    assert queue.cut(0.0, cost_s(1) / 2) == []
    assert len(queue.cut(0.0)) == 1
