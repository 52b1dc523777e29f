"""Fitted ensembles for the tests of the preprocessing, and what tabpfn makes of rows with them.

The network is tabpfn's own v3.5, tiny and random: a preset decides the preprocessing, and is given to it from outside.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabpfn import TabPFNClassifier, TabPFNRegressor
from tabpfn.constants import ModelVersion
from tabpfn.inference_config import InferenceConfig
from tabpfn.preprocessing.configs import PreprocessorConfig

from serve.core import Matrix
from serve.engine.preprocessing import Preprocessing
from training.checkpoint import INFERENCE_CONFIG

CATEGORICAL = [4, 5]


def preset(name: str) -> dict[str, Any]:
    """An inference config by its name: "demo", "v2", "v2_regression", ..., or a mix of what no default uses."""
    if name == "demo":
        return {"PREPROCESS_TRANSFORMS": INFERENCE_CONFIG.PREPROCESS_TRANSFORMS, "FINGERPRINT_FEATURE": False}
    if name == "mix":
        transforms = [
            PreprocessorConfig("robust", categorical_name="onehot"),
            PreprocessorConfig("power", categorical_name="ordinal_common_categories_shuffled"),
            PreprocessorConfig("squashing_scaler_max10", categorical_name="none", append_original=True),
            PreprocessorConfig("quantile_uni_fine", categorical_name="ordinal", global_transformer_name="svd"),
        ]
        return {"PREPROCESS_TRANSFORMS": transforms, "FINGERPRINT_FEATURE": True}
    version = ModelVersion.V2_5 if name.startswith("v2_5") else ModelVersion.V2
    task = "regression" if name.endswith("regression") else "multiclass"
    config = InferenceConfig.get_default(task, version)
    return {"PREPROCESS_TRANSFORMS": config.PREPROCESS_TRANSFORMS, "FINGERPRINT_FEATURE": config.FINGERPRINT_FEATURE}


PRESETS = ("demo", "v2", "v2_regression", "v2_5", "v2_5_regression", "mix")


def table(num_rows: int, seed: int, *, missing: float = 0.08) -> Matrix:
    """Eight columns: plain, skewed, rounded, mostly zero, two categories, constant, large; some cells missing."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_rows, 8))
    rows[:, 1] = np.exp(2 * rows[:, 1])
    rows[:, 2] = np.round(rows[:, 2])
    rows[:, 3] = rng.integers(0, 3, num_rows) * (rng.random(num_rows) < 0.2)
    rows[:, 4] = rng.integers(0, 4, num_rows)
    rows[:, 5] = rng.integers(0, 2, num_rows)
    rows[:, 6] = 1
    rows[:, 7] *= 1e4
    rows[rng.random(rows.shape) < missing] = np.nan
    return rows


def odd_rows(seed: int = 1) -> Matrix:
    """Rows such as a context never showed: unseen codes, far outliers, zeros of both signs, beyond float32."""
    rows = table(12, seed)
    rows[0, 4] = -1
    rows[1, 4:6] = 9
    rows[2:4] *= 50
    rows[4], rows[5] = -0.0, 0.0
    rows[6] = 1e39
    rows[7] = np.nan
    rows[8] = rows[9]
    return rows


def fit(
    checkpoint: Path,
    config: dict[str, Any],
    context: Matrix,
    *,
    regression: bool = False,
    num_members: int = 4,
    categorical: list[int] | None = None,
) -> list[Any]:
    """The fitted members of an estimator of tabpfn."""
    kind = TabPFNRegressor if regression else TabPFNClassifier
    scores = np.nan_to_num(context[:, 0])
    estimator = kind(
        model_path=str(checkpoint),
        device="cpu",
        fit_mode="fit_with_cache",
        n_estimators=num_members,
        categorical_features_indices=CATEGORICAL if categorical is None else categorical,
        memory_saving_mode=False,
        inference_precision=torch.float32,
        kv_cache_precision="auto",
        ignore_pretraining_limits=True,
        inference_config=config,
    )
    with warnings.catch_warnings():
        # of tabpfn's transforms about the odd columns that these tests fit on purpose
        warnings.simplefilter("ignore")
        estimator.fit(context, scores if regression else np.digitize(scores, np.quantile(scores, [0.4, 0.8])))
    return list(estimator.executor_.ensemble_members)


def tabpfn_rows(member: Any, rows: Matrix) -> Matrix:
    """What the network is given for a member, by tabpfn's own two pipelines; float32 [rows, width]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = torch.as_tensor(member.transform_X_test(rows), dtype=torch.float32).unsqueeze(1)
        if member.gpu_preprocessor is not None:
            prepared = member.gpu_preprocessor(
                prepared, feature_schema=member.feature_schema, num_train_rows=0, use_fitted_cache=True
            ).x
    return np.asarray(prepared.squeeze(1).numpy())


def tabpfn_rows_alone(member: Any, rows: Matrix) -> Matrix:
    return np.concatenate([tabpfn_rows(member, row) for row in np.split(rows, len(rows))])


def member_rows(preprocessing: Preprocessing, rows: Matrix) -> list[Matrix]:
    """The compiled rows of each member, in the order of the members; float32 [rows, width]."""
    prepared: dict[int, Matrix] = {}
    for group, output in zip(preprocessing.groups, preprocessing(rows), strict=True):
        prepared.update(zip(group, output.numpy(), strict=True))
    return [prepared[position] for position in range(len(prepared))]


def assert_close(got: Matrix, expected: Matrix, tolerance: float = 1e-6) -> None:
    """Missing and infinite in the same places; else equal within the tolerance, relative for large values."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    same = (got == expected) | np.isnan(got)
    with np.errstate(all="ignore"):
        distance = np.abs(got.astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    assert (same | (distance <= tolerance)).all(), np.argwhere(~same & ~(distance <= tolerance))[:5]


def bits(prepared: Matrix) -> Matrix:
    """The bits of float32 values, so that zeros of either sign differ."""
    return np.ascontiguousarray(prepared).view(np.uint32)
