"""Row buckets, and a warm-up that fails the start when a bucket fails."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.core import Batch, Matrix
from serve.core.errors import OutOfMemory, StartupError
from serve.core.row_buckets import bucket_of, row_buckets
from serve.engine.checks.warmup import warm_up
from serve.engine.fake import FakeContext, FakeEngine


def test_buckets_are_powers_of_two_steps_between_and_the_maximum() -> None:
    assert row_buckets(1) == (1,)
    assert row_buckets(8) == (1, 2, 3, 4, 5, 6, 7, 8)
    assert row_buckets(50) == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 50)


def test_a_gpu_has_few_buckets() -> None:
    assert row_buckets(1, "cuda:0") == (1,)
    assert row_buckets(8, "cuda:0") == (1, 4, 8)
    assert row_buckets(256, "cuda:3") == (1, 4, 16, 32, 64, 96, 128, 192, 256)
    assert len(row_buckets(1_000, "cuda:0")) == 13


@given(st.integers(1, 5_000), st.data())
def test_padding_adds_a_quarter_to_a_large_batch_at_most(most: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, most))
    assert bucket_of(rows, row_buckets(most)) - rows <= rows / 4


@given(st.integers(1, 5_000), st.data())
def test_every_size_has_the_smallest_bucket_that_holds_it(most: int, data: st.DataObject) -> None:
    buckets = row_buckets(most)
    rows = data.draw(st.integers(1, most))
    bucket = bucket_of(rows, buckets)
    assert rows <= bucket <= most
    assert not any(rows <= smaller < bucket for smaller in buckets)


class Counting(FakeEngine):
    """Remembers the rows of each batch; a batch takes `seconds[bucket]` in turn, on a clock of its own."""

    def __init__(self, seconds: dict[int, list[float]] | None = None) -> None:
        super().__init__()
        self.ran: list[int] = []
        self.seconds = seconds or {}
        self.now = 0.0

    def predict(self, batch: Batch) -> Matrix:
        self.ran.append(len(batch.rows))
        if times := self.seconds.get(len(batch.rows)):
            self.now += times.pop(0)
        return super().predict(batch)


def test_every_bucket_runs_the_largest_first(fake_context: FakeContext) -> None:
    engine = Counting()
    seconds = warm_up(engine, fake_context, fake_context.encode_context()[:3], row_buckets(4), 1e-6)
    assert engine.ran == [4, 4, 3, 3, 2, 2, 1, 1]
    assert set(seconds) == {1, 2, 3, 4}


def test_what_happens_only_once_is_not_in_the_seconds(
    fake_context: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow model is not made to start twice as slowly for it."""
    engine = Counting({4: [6.0], 2: [0.9, 0.5], 1: [0.25, 0.75]})
    monkeypatch.setattr("serve.engine.checks.warmup.time", SimpleNamespace(perf_counter=lambda: engine.now))
    seconds = warm_up(engine, fake_context, fake_context.encode_context()[:3], (1, 2, 4), 1e-6)
    assert seconds == {4: 6.0, 2: 0.5, 1: 0.25}
    assert engine.ran == [4, 2, 2, 1, 1]


def test_the_capture_of_a_graph_is_never_in_the_seconds(
    fake_context: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Counting({4: [6.0, 0.25], 1: [0.5, 0.125]})
    engine.device = "cuda:0"
    monkeypatch.setattr("serve.engine.checks.warmup.time", SimpleNamespace(perf_counter=lambda: engine.now))
    seconds = warm_up(engine, fake_context, fake_context.encode_context()[:3], (1, 4), 1e-6)
    assert seconds == {4: 0.25, 1: 0.125}


@pytest.mark.parametrize("fault", ["raises", "nan", "short"])
def test_a_failing_bucket_fails_the_start_by_name(fake_context: FakeContext, fault: str) -> None:
    class Broken(FakeEngine):
        def predict(self, batch: Batch) -> Matrix:
            answer = super().predict(batch)
            if len(batch.rows) == 4 and fault == "raises":
                raise RuntimeError("out of memory")
            if len(batch.rows) == 4:
                return answer[:-1] if fault == "short" else answer * np.nan
            return answer

    with pytest.raises(StartupError, match="4 rows on cpu"):
        warm_up(Broken(), fake_context, fake_context.encode_context()[:1], row_buckets(8), 1e-6)


def test_a_bucket_that_answers_otherwise_fails_the_start(fake_context: FakeContext) -> None:
    class Bent(FakeEngine):
        def predict(self, batch: Batch) -> Matrix:
            return super().predict(batch) + 0.01 * (len(batch.rows) == 2)

    with pytest.raises(StartupError, match=r"in a batch of 8 and in one of 2 differ by 0\.01"):
        warm_up(Bent(), fake_context, fake_context.encode_context()[:3], row_buckets(8), 1e-3)


class Small(FakeEngine):
    """Has memory for the batches whose rows `fits` allows."""

    def __init__(self, fits: Callable[[int], bool]) -> None:
        super().__init__()
        self.fits = fits

    def predict(self, batch: Batch) -> Matrix:
        if not self.fits(len(batch.rows)):
            raise OutOfMemory(f"no memory for {len(batch.rows)} rows on cpu")
        return super().predict(batch)


def test_buckets_that_do_not_fit_into_the_memory_are_left_out(
    fake_context: FakeContext, caplog: pytest.LogCaptureFixture
) -> None:
    rows = fake_context.encode_context()[:3]
    assert set(warm_up(Small(lambda n: n <= 5), fake_context, rows, row_buckets(8), 1e-6)) == {1, 2, 3, 4, 5}
    assert caplog.messages == ["batches have 5 rows at most, not 8: no memory for 6 rows on cpu"]


def test_without_memory_for_one_row_the_start_fails(fake_context: FakeContext) -> None:
    with pytest.raises(StartupError, match="at every number of rows: no memory for 1 rows on cpu"):
        warm_up(Small(lambda _: False), fake_context, fake_context.encode_context()[:3], row_buckets(8), 1e-6)


def test_memory_that_runs_out_below_a_bucket_that_fitted_fails_the_start(fake_context: FakeContext) -> None:
    """The engine would pad rows to this bucket, which the batcher does not know."""
    with pytest.raises(StartupError, match="at 3 rows, after more rows had fitted"):
        warm_up(Small(lambda n: n != 3), fake_context, fake_context.encode_context()[:3], row_buckets(8), 1e-6)
