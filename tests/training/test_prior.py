"""Tables of the prior are usable and follow their seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from training.prior import BASIC_WEIGHTS, FINAL_WEIGHTS, FULL_WEIGHTS, MAX_CLASSES, Table, sample_table

_ADDITIVE, _EVENTS, _STREAMS, _PAYMENTS = 7, 8, 9, 10


def only(mechanism: int) -> tuple[float, ...]:
    return tuple(float(number == mechanism) for number in range(len(FINAL_WEIGHTS)))


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 2**32),
    st.integers(2, 200),
    st.integers(1, 40),
    st.sampled_from([BASIC_WEIGHTS, FULL_WEIGHTS, FINAL_WEIGHTS]),
)
def test_every_table_is_finite_or_missing(seed: int, rows: int, features: int, weights: tuple[float, ...]) -> None:
    table = sample_table(np.random.default_rng(seed), rows, features, weights)
    assert table.features.shape == (rows, features)
    assert table.features.dtype == np.float32
    assert not np.isinf(table.features).any()
    assert table.labels.shape == (rows,)
    assert table.labels.min() >= 0
    assert table.labels.max() < MAX_CLASSES
    again = sample_table(np.random.default_rng(seed), rows, features, weights)
    np.testing.assert_array_equal(table.features, again.features)
    np.testing.assert_array_equal(table.labels, again.labels)


@pytest.mark.parametrize(
    ("mechanism", "class_counts", "num_missing", "mean_size"),
    [
        (0, [145, 109, 46], 0, 1.0452),
        (1, [28, 0, 47, 56, 55, 45, 46, 23], 180, 1.0649),
        (2, [105, 62, 38, 52, 43], 76, 1.1466),
        (3, [96, 204], 0, 0.71835),
        (4, [188, 112], 0, 2.2436),
        (5, [131, 169], 0, 2.4914),
        (6, [70, 230], 0, 0.79805),
        (7, [179, 121], 0, 0.77114),
        (8, [6, 14, 25, 27, 11, 12, 205], 141, 5.5471),
        (9, [18, 183, 43, 17, 14, 17, 8], 290, 15.562),
        (10, [48, 252], 33, 177.94),
    ],
)
def test_a_seed_draws_the_tables_that_the_shipped_checkpoint_was_trained_on(
    mechanism: int, class_counts: list[int], num_missing: int, mean_size: float
) -> None:
    """A call of the generator that is added, removed or moved would train another checkpoint from the same seed."""
    table = sample_table(np.random.default_rng([17, mechanism]), 300, 9, only(mechanism), 0.5)
    assert np.bincount(table.labels).tolist() == class_counts
    assert np.isnan(table.features).sum() == num_missing
    assert np.nanmean(np.abs(table.features)) == pytest.approx(mean_size, rel=1e-4)


def test_the_prior_has_gaps_imbalance_categories_and_many_classes() -> None:
    rng = np.random.default_rng(0)
    tables = [sample_table(rng, 200, 8, FULL_WEIGHTS) for _ in range(300)]
    assert any(np.isnan(table.features).any() for table in tables)
    assert any(np.bincount(table.labels).max() > 0.9 * 200 for table in tables), "class imbalance"
    few_levels = [len(np.unique(table.features[:, 0])) <= 20 for table in tables]
    assert 0.05 < np.mean(few_levels) < 0.6, "categories"
    assert {len(np.unique(table.labels)) for table in tables} >= {2, 3, 5, 10}


def test_the_share_of_two_classes_is_a_choice() -> None:
    rng = np.random.default_rng(0)
    classes = [len(np.unique(sample_table(rng, 300, 4, FINAL_WEIGHTS, 1.0).labels)) for _ in range(40)]
    assert max(classes) == 2


def test_labels_can_be_learned_from_features() -> None:
    """In most tables the label of the nearest neighbour says more than the class shares."""
    rng = np.random.default_rng(1)
    better = []
    for number in range(60):
        table = sample_table(rng, 300, 6, FINAL_WEIGHTS if number % 2 else FULL_WEIGHTS)
        filled = np.nan_to_num(table.features)
        scaled = (filled - filled.mean(axis=0)) / (filled.std(axis=0) + 1e-6)
        distance = ((scaled[200:, None] - scaled[None, :200]) ** 2).sum(axis=2)
        nearest = table.labels[:200][distance.argmin(axis=1)]
        chance = (np.bincount(table.labels, minlength=MAX_CLASSES) / 300) @ (
            np.bincount(table.labels, minlength=MAX_CLASSES) / 300
        )
        better.append(np.mean(nearest == table.labels[200:]) > chance)
    assert np.mean(better) > 0.75


def test_columns_of_a_sum_say_little_alone_and_much_together() -> None:
    rng = np.random.default_rng(3)
    only_sums = only(_ADDITIVE)
    alone, together = [], []
    for _ in range(25):
        table = sample_table(rng, 600, 12, only_sums, 1.0)
        columns = np.nan_to_num(table.features).argsort(axis=0).argsort(axis=0) * 10 // 600  # ten bins
        labels, scores = table.labels, np.zeros((300, 12))
        for column in range(12):
            for level in range(10):
                seen = labels[:300][columns[:300, column] == level]
                scores[columns[300:, column] == level, column] = (seen.sum() + 1) / (len(seen) + 2)
        if labels[300:].min() < labels[300:].max():
            scores = np.log(scores / (1 - scores))
            alone.append(max(roc_auc_score(labels[300:], scores[:, column]) for column in range(12)))
            together.append(roc_auc_score(labels[300:], scores.sum(axis=1)))
    assert np.mean(together) > np.mean(alone) + 0.03


def test_a_log_has_zeros_codes_and_gaps_and_can_be_learned_from() -> None:
    rng = np.random.default_rng(4)
    tables = [sample_table(rng, 400, 12, only(_EVENTS), 1.0) for _ in range(40)]
    columns = [column for table in tables for column in table.features.T]
    assert np.mean([np.mean(column == 0) > 0.5 for column in columns]) > 0.05, "mostly nothing"
    assert 0.1 < np.mean([len(np.unique(column[~np.isnan(column)])) <= 15 for column in columns]) < 0.6, "few levels"
    assert 0.05 < np.mean([np.isnan(column).any() for column in columns]) < 0.6, "missing"
    assert np.mean(forest_scores(tables)) > 0.65


def test_a_stream_has_columns_that_look_back() -> None:
    """Counts, missing first gaps and codes; and labels can be learned from them."""
    rng = np.random.default_rng(5)
    tables = [sample_table(rng, 500, 14, only(_STREAMS), 1.0) for _ in range(40)]
    columns = [column for table in tables for column in table.features.T]
    assert np.mean([np.isnan(column).any() for column in columns]) > 0.1, "missing"
    assert np.mean([np.mean(column == 0) > 0.5 for column in columns]) > 0.05, "mostly nothing before"
    assert np.mean(forest_scores(tables)) > 0.75


def test_frauds_among_payments_are_found_by_several_columns_together() -> None:
    """Codes and gaps as scorers have them. More columns find more frauds, so no single column gives a fraud away."""
    scores = {}
    for num_columns in (3, 20):
        rng = np.random.default_rng(6)
        tables = [sample_table(rng, 500, num_columns, only(_PAYMENTS), 1.0) for _ in range(40)]
        scores[num_columns] = np.mean(forest_scores(tables))
    columns = [column for table in tables for column in table.features.T]
    assert np.mean([np.isnan(column).any() for column in columns]) > 0.1, "missing"
    assert 0.15 < np.mean([len(np.unique(column[~np.isnan(column)])) <= 15 for column in columns]) < 0.6, "codes"
    assert 0.85 < scores[20] < 0.995
    assert scores[20] > scores[3] + 0.1


def test_more_columns_than_a_scorer_of_payments_has_can_be_drawn() -> None:
    table = sample_table(np.random.default_rng(7), 100, 40, only(_PAYMENTS))
    assert table.features.shape == (100, 40)


def forest_scores(tables: list[Table]) -> list[float]:
    """ROC AUC of a small forest on the second half of each table of two classes."""
    scores = []
    for table in tables:
        half = len(table.labels) // 2
        features = np.nan_to_num(table.features, nan=-1e9)
        if len(np.unique(table.labels[:half])) == 2 == len(np.unique(table.labels[half:])):
            forest = RandomForestClassifier(60, random_state=0).fit(features[:half], table.labels[:half])
            scores.append(
                roc_auc_score(table.labels[half:] == forest.classes_[1], forest.predict_proba(features[half:])[:, 1])
            )
    return scores
