"""The canary check passes an honest engine and names the way in which another is wrong."""

import numpy as np
import pytest

from serve.core import Batch, Matrix
from serve.core.errors import StartupError
from serve.engine.checks.parity import NUM_CANARIES, canary_rows, check_parity, largest_difference
from serve.engine.fake import FakeContext, FakeEngine


def test_an_honest_engine_passes(fake_context: FakeContext) -> None:
    rows = canary_rows(fake_context.encode_context())
    assert check_parity(FakeEngine(), fake_context, rows, 1e-9) == pytest.approx(0, abs=1e-9)


def test_canaries_are_context_rows_some_with_holes() -> None:
    context = np.arange(400.0).reshape(40, 10)
    rows = canary_rows(context)
    assert rows.shape == (NUM_CANARIES, 10)
    assert not np.isnan(rows[: NUM_CANARIES // 2]).any()
    assert np.isnan(rows).any()
    assert not np.isnan(context).any()


def test_slack_is_allowed_where_it_is_and_no_further() -> None:
    one, slack = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]), np.array([[0.0, 0.5], [0.0, 0.0]])
    moved = one + np.array([[0.0, 0.5], [0.0, 0.0], [0.0, 0.25]])
    assert largest_difference(one, moved, is_probability=False, slack=slack) == 0  # the third row has the first's slack
    assert largest_difference(one, moved, is_probability=False) == 0.25
    moved[1, 1] += 0.5
    assert largest_difference(one, moved, is_probability=False, slack=slack) == 0.25
    moved[0, 1] = np.nan
    assert np.isnan(largest_difference(one, moved, is_probability=False, slack=slack))


class LeanAlone(FakeEngine):
    def predict(self, batch: Batch) -> Matrix:
        return super().predict(batch) + (0.01 if len(batch.rows) == 1 else 0)


class MixesRows(FakeEngine):
    def predict(self, batch: Batch) -> Matrix:
        answer = super().predict(batch)
        return answer if len(answer) == 1 else answer + 0.01 * answer[:1]


class StaleCache(FakeEngine):
    def reference(self, batch: Batch) -> Matrix:
        return super().reference(batch) - 0.01


class NotANumber(FakeEngine):
    def predict(self, batch: Batch) -> Matrix:
        return super().predict(batch) * np.nan


@pytest.mark.parametrize(
    ("engine", "way"),
    [(LeanAlone(), "alone"), (MixesRows(), "alone"), (StaleCache(), "uncached"), (NotANumber(), "alone")],
)
def test_a_wrong_engine_is_caught(fake_context: FakeContext, engine: FakeEngine, way: str) -> None:
    with pytest.raises(
        StartupError, match=f"answered batched and {way} differ by .* engine.parity_tolerance"
    ) as refusal:
        check_parity(engine, fake_context, canary_rows(fake_context.encode_context()), 1e-3)
    # a number beside the setting's name would be taken for a recommendation
    assert "a larger tolerance would hide it" in str(refusal.value)
    assert "2e-2" not in str(refusal.value)
