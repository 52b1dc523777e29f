"""From every member's logits to the answer of a request: tabpfn's post-processing with its constants at hand.

It mirrors `TabPFNClassifier.forward` / `logits_to_probabilities` / `_predict_proba` and `TabPFNRegressor.predict` of
tabpfn 9.2. No operation asks the device for a value, so a GPU's graph holds it together with the forward pass.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from tabpfn.base import resolved_softmax_temperature
from tabpfn.constants import PROBABILITY_EPSILON_ROUND_ZERO, SKLEARN_16_DECIMAL_PRECISION
from tabpfn.downsample_correction import temper_and_correct_logits

from serve.core import QUANTILES, Matrix
from serve.engine.bars import BarStatistics, BarTranslation


class ClassifierOutputs:
    """Logits float32 [members, rows, classes], members in order, to probabilities float32 [rows, classes]."""

    def __init__(self, estimator: Any, device: torch.device) -> None:
        num_classes = estimator.n_classes_
        orders = [_class_order(member.config, num_classes) for member in estimator.executor_.ensemble_members]
        self._order = torch.tensor(np.stack(orders), device=device)[:, None, :]  # [members, 1, classes]
        self._temperature = float(resolved_softmax_temperature(estimator))
        self._average_first = bool(estimator.average_before_softmax)
        self._weights = torch.as_tensor(_class_weights(estimator), dtype=torch.float32, device=device)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        ordered = logits.gather(2, self._order.expand(-1, logits.shape[1], -1)) / self._temperature
        if self._average_first:
            probabilities = ordered.mean(dim=0).softmax(dim=-1)
        else:
            probabilities = ordered.softmax(dim=-1).mean(dim=0)
        weighted = probabilities * self._weights
        return weighted / weighted.sum(dim=-1, keepdim=True)


def _class_order(config: Any, num_classes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The position of each class in a member's logits."""
    order = np.arange(num_classes, dtype=np.int64)
    if config.class_permutation is not None:
        order[: len(config.class_permutation)] = config.class_permutation
    return order


def _class_weights(estimator: Any) -> Matrix:
    """The product of all factors per class. Each of tabpfn's steps multiplies and normalises; one product does all."""
    weights = np.ones(estimator.n_classes_)
    correction = getattr(estimator, "downsample_correction_weights_", None)
    if correction is not None:
        weights = weights * np.asarray(correction, dtype=np.float64)
    if estimator.balance_probabilities and getattr(estimator, "class_counts_", None) is not None:
        weights = weights / (estimator.class_counts_ / estimator.class_counts_.sum())
    thresholds = getattr(estimator, "tuned_classification_thresholds_", None)
    if thresholds is not None:
        weights = weights / np.maximum(thresholds, 1e-8)
    return np.asarray(weights, dtype=np.float64)


def round_probabilities(estimator: Any, probabilities: Matrix) -> Matrix:
    """tabpfn's optional rounding of a classifier's probabilities (`USE_SKLEARN_16_DECIMAL_PRECISION`)."""
    if not estimator.inference_config_.USE_SKLEARN_16_DECIMAL_PRECISION:
        return probabilities
    rounded = np.around(probabilities, decimals=SKLEARN_16_DECIMAL_PRECISION)
    rounded = np.where(rounded < PROBABILITY_EPSILON_ROUND_ZERO, 0.0, rounded)
    return np.asarray(rounded / rounded.sum(axis=1, keepdims=True), dtype=np.float64)


class RegressorOutputs:
    """Logits float32 [members, rows, bars], members in order, to mean, median and `QUANTILES`.

    They are float64 [rows, statistics], in the unit of the target.

    Args:
        estimator: a fitted regressor that still has its KV caches. One of its answers shows each member's borders, and
            the bars that the member's target transform cannot reach.
        row: the clean row for that answer, float64 [1, features].
    """

    def __init__(self, estimator: Any, row: Matrix, device: torch.device) -> None:
        bars = estimator.znorm_space_bardist_.to(device)
        self._scale, self._shift = float(estimator.y_train_std_), float(estimator.y_train_mean_)
        self._temperature = float(resolved_softmax_temperature(estimator))
        self._average_first = bool(estimator.average_before_softmax)
        answers = list(estimator._iter_forward_executor(row, use_inference_mode=True))
        borders = [torch.as_tensor(borders, device=device) for borders, _ in answers]
        self._translation, self._statistics = (
            BarTranslation(borders, bars.borders),
            BarStatistics(bars, (0.5, *QUANTILES)),
        )
        unreachable = torch.stack([torch.isneginf(output.reshape(-1)) for _, output in answers])
        self._unreachable = unreachable[:, None, :].to(device)  # [members, 1, bars]
        self._ensemble_temperature = float(getattr(estimator, "ensemble_softmax_temperature_", 1.0))
        correction = getattr(estimator, "downsample_correction_log_weights_", None)
        self._log_weights = None if correction is None else correction.to(device, torch.float32)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return self._statistics(self._average(logits)) * self._scale + self._shift

    def slack(self, logits: torch.Tensor, share: float) -> torch.Tensor:
        """How far each answer moves where so small a share of its distribution moves; see `BarStatistics.slack`."""
        return self._statistics.slack(self._average(logits), share) * abs(self._scale)

    def _average(self, logits: torch.Tensor) -> torch.Tensor:
        """Logarithms of the members' average, up to a factor: float32 [rows, bars]."""
        reachable = (logits / self._temperature).masked_fill(self._unreachable, float("-inf"))
        translated = self._translation(reachable.softmax(dim=-1))
        average = (translated.log() if self._average_first else translated).sum(dim=0) / len(logits)
        logs = (average.softmax(dim=-1) if self._average_first else average).log()
        logs = temper_and_correct_logits(logs, temperature=self._ensemble_temperature, log_weights=self._log_weights)
        return cast(torch.Tensor, logs)
