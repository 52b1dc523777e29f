"""Simulated cards follow their seed, are in order of time, hold little fraud, and no column looks into the future."""

import numpy as np
import pandas as pd
import pytest

from training.cards import (
    CATEGORICAL,
    FEATURES,
    NUMERIC,
    REPORT_DELAY_S,
    TARGET,
    sample_context,
    simulate,
    split_by_time,
)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return simulate(3, num_customers=1_500)


def test_a_seed_fixes_the_history(rows: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(rows, simulate(3, num_customers=1_500))
    assert len(simulate(4, num_customers=1_500)) != len(rows)


def test_the_table_has_its_columns_and_plausible_values(rows: pd.DataFrame) -> None:
    assert list(rows.columns) == ["time_s", *FEATURES, TARGET]
    assert rows["time_s"].is_monotonic_increasing
    assert 0.003 < rows[TARGET].mean() < 0.01
    assert rows["hour"].between(0, 24, inclusive="left").all()
    assert (rows[list(NUMERIC)].dtypes == "float64").all()
    assert not np.isinf(rows[list(NUMERIC)]).any().any()
    for name in CATEGORICAL:
        assert rows[name].nunique() <= 10
    assert rows["distance_km"].isna().any()
    assert rows["new_device"].isna().any()
    assert rows.loc[rows["channel"] == "online", "distance_km"].isna().all()


def test_frauds_differ_but_no_column_gives_them_away(rows: pd.DataFrame) -> None:
    fraud = rows[TARGET] == 1
    assert rows.loc[fraud, "count_1h"].mean() > 2 * rows.loc[~fraud, "count_1h"].mean()
    for name in NUMERIC:
        values = rows[name].fillna(rows[name].median())
        ranks = values.rank()
        auc = (ranks[fraud].mean() - (fraud.sum() + 1) / 2) / (~fraud).sum()
        assert 0.15 < auc < 0.85, f"{name} alone gives fraud away"


def test_no_row_depends_on_later_rows(rows: pd.DataFrame) -> None:
    """Counts, sums and gaps agree with each other for rows in the second half."""
    later = rows.iloc[len(rows) // 2 :]
    zero = later[later["count_24h"] == 0]
    assert (zero["amount_24h"] == 0).all()
    assert (zero["minutes_since_last"].fillna(np.inf) >= 24 * 60 - 0.1).all()
    assert (later["count_1h"] <= later["count_24h"]).all()


def test_the_earlier_part_of_a_split_has_only_reported_outcomes(rows: pd.DataFrame) -> None:
    history, later = split_by_time(rows, 0.6)
    assert history["time_s"].max() < later["time_s"].min() - REPORT_DELAY_S
    assert len(later) == pytest.approx(0.4 * len(rows), rel=0.01)


def test_a_context_has_the_requested_share_of_fraud(rows: pd.DataFrame) -> None:
    history, _ = split_by_time(rows, 0.6)
    context = sample_context(history, 500, 0.2, seed=0)
    assert len(context) == 500
    assert context[TARGET].sum() == min(100, history[TARGET].sum())
    pd.testing.assert_frame_equal(context, sample_context(history, 500, 0.2, seed=0))
