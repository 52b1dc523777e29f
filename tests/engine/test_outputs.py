"""Post-processing gives what tabpfn's own gives, from the same logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import definition, records
from tabpfn import TabPFNClassifier, TabPFNRegressor

from serve.core import QUANTILES, QueryTable, Task
from serve.engine import cleaning, tabpfn_estimators
from serve.engine.outputs import ClassifierOutputs, RegressorOutputs, round_probabilities
from serve.engine.row_encoder import RowEncoder


def fit(checkpoint: Path, task: Task, **options: Any) -> tuple[Any, np.ndarray]:
    """A fitted estimator for clean rows, and some of them."""
    model = definition(checkpoint, task)
    raw = RowEncoder(model.context.columns).read(QueryTable.from_records(records(120, seed=1)))
    frame = cleaning.context_frame(model, raw)
    kind = TabPFNClassifier if task is Task.CLASSIFICATION else TabPFNRegressor
    estimator = kind(
        model_path=str(checkpoint), device="cpu", fit_mode="fit_with_cache", n_estimators=5, random_state=3,
        inference_precision=torch.float32, categorical_features_indices=[1, 2, 7], **options,
    ).fit(frame, np.array(model.context.target))  # fmt: skip
    return tabpfn_estimators.on_matrices(estimator), cleaning.clean(estimator, frame)


def member_logits(estimator: Any, rows: np.ndarray) -> torch.Tensor:
    task = "multiclass" if isinstance(estimator, TabPFNClassifier) else "regression"
    outputs = estimator.executor_.iter_outputs(rows, autocast=False, task_type=task)
    return torch.stack([output.float() for output, _ in outputs])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softmax_temperature": 0.6},
        {"average_before_softmax": True},
        {"balance_probabilities": True},
        {"inference_config": {"USE_SKLEARN_16_DECIMAL_PRECISION": True}},
    ],
    ids=lambda options: next(iter(options), "default"),
)
def test_probabilities_are_tabpfns(checkpoint: Path, options: dict[str, Any]) -> None:
    estimator, rows = fit(checkpoint, Task.CLASSIFICATION, **options)
    got = ClassifierOutputs(estimator, torch.device("cpu"))(member_logits(estimator, rows)).double().numpy()
    np.testing.assert_allclose(round_probabilities(estimator, got), estimator.predict_proba(rows), rtol=0, atol=1e-6)


def test_tuned_thresholds_weigh_the_classes(checkpoint: Path) -> None:
    estimator, rows = fit(checkpoint, Task.CLASSIFICATION)
    estimator.tuned_classification_thresholds_ = np.array([0.2, 0.5, 0.9])
    got = ClassifierOutputs(estimator, torch.device("cpu"))(member_logits(estimator, rows)).numpy()
    np.testing.assert_allclose(got, estimator.predict_proba(rows), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"average_before_softmax": True}, {"softmax_temperature": 1.3}])
def test_statistics_are_tabpfns(checkpoint: Path, options: dict[str, Any]) -> None:
    estimator, rows = fit(checkpoint, Task.REGRESSION, **options)
    outputs = RegressorOutputs(estimator, rows[:1], torch.device("cpu"))
    got = outputs(member_logits(estimator, rows)).numpy()
    answer = estimator.predict(rows, output_type="main", quantiles=list(QUANTILES))
    expected = np.stack([answer["mean"], answer["median"], *answer["quantiles"]], axis=1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert np.ptp(got[:, 0]) > 0


def test_slack_covers_what_a_small_share_moves(checkpoint: Path) -> None:
    estimator, rows = fit(checkpoint, Task.REGRESSION, softmax_temperature=0.3)
    outputs, logits = RegressorOutputs(estimator, rows[:1], torch.device("cpu")), member_logits(estimator, rows)
    answer = estimator.predict(rows, output_type="full")
    slack = outputs.slack(logits, 1e-3)
    assert torch.equal(slack[:, 0], torch.zeros(len(rows)).double())
    below, above = outputs(logits)[:, 1:] - slack[:, 1:], outputs(logits)[:, 1:] + slack[:, 1:]
    low, high = (answer["criterion"].cdf(answer["logits"].float(), edge.float()) for edge in (below, above))
    assert bool((high - low >= 1e-3 - 1e-5).all()), "both edges together lie at least the share apart"
    assert bool((outputs.slack(logits, 1e-5) <= slack).all())


def test_quantiles_cut_off_their_share_in_any_batch(checkpoint: Path) -> None:
    """Beside bars that are nearly empty a quantile moves with the last bit of the logits, in tabpfn alike. What holds
    for every batch size is the share of the distribution below it (docs/models.md)."""
    estimator, rows = fit(checkpoint, Task.REGRESSION, softmax_temperature=0.3)
    rows = rows[:8]
    outputs = RegressorOutputs(estimator, rows[:1], torch.device("cpu"))
    alone = np.split(rows, len(rows))
    together = outputs(member_logits(estimator, rows))[:, 1:]
    one_by_one = torch.cat([outputs(member_logits(estimator, row))[:, 1:] for row in alone])
    answers = [estimator.predict(row, output_type="full") for row in alone]
    moved = 0.0
    for index, answer in enumerate(answers):
        for quantiles in (together[index], one_by_one[index]):
            shares = answer["criterion"].cdf(answer["logits"].float().reshape(1, -1), quantiles[None].float())[0]
            torch.testing.assert_close(shares.float(), torch.tensor([0.5, *QUANTILES]), rtol=0, atol=3e-6)
        moved = max(moved, float((together[index] - one_by_one[index]).abs().max()))
    assert moved > 0, "a batch that changes no bit would prove nothing"
