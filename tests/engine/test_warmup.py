"""Row buckets, and a warm-up that fails the start when a bucket fails."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.core import Batch, Matrix
from serve.engine.fake import FakeContext, FakeEngine
from serve.engine.warmup import bucket_of, row_buckets, warm_up
from serve.errors import StartupError


def test_buckets_are_powers_of_two_and_the_maximum() -> None:
    assert row_buckets(1) == (1,)
    assert row_buckets(8) == (1, 2, 4, 8)
    assert row_buckets(100) == (1, 2, 4, 8, 16, 32, 64, 100)


@given(st.integers(1, 5_000), st.data())
def test_every_size_has_the_smallest_bucket_that_holds_it(most: int, data: st.DataObject) -> None:
    buckets = row_buckets(most)
    rows = data.draw(st.integers(1, most))
    bucket = bucket_of(rows, buckets)
    assert rows <= bucket <= most
    assert not any(rows <= smaller < bucket for smaller in buckets)


def test_every_bucket_runs_the_largest_first(fake_context: FakeContext) -> None:
    ran: list[int] = []

    class Counting(FakeEngine):
        def predict(self, batch: Batch) -> Matrix:
            ran.append(len(batch.rows))
            return super().predict(batch)

    seconds = warm_up(Counting(), fake_context, fake_context.encode_context()[:3], row_buckets(16), 1e-6)
    assert ran == [16, 8, 4, 2, 1]
    assert set(seconds) == {1, 2, 4, 8, 16}


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
