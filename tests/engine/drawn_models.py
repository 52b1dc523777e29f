"""Random models for the comparison with tabpfn (`differential.py`): one seed draws everything about one.

That is a table, rows to ask, an architecture, a preset, and the way in: a context of the store, or a pickled estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from tabpfn.constants import ModelVersion
from tabpfn.inference_config import InferenceConfig
from tabpfn.preprocessing.configs import PreprocessorConfig

from serve.core import Task

Rng = np.random.Generator

ARCHITECTURES = ("tabpfn_v2", "tabpfn_v2_5", "tabpfn_v2_6", "tabpfn_v3", "tabpfn_v3_5")
PRESETS = (
    "power", "safepower", "quantile_uni_coarse", "quantile_norm_coarse", "quantile_uni", "quantile_norm",
    "quantile_uni_fine", "quantile_norm_fine", "quantile_uni_extrapolate", "squashing_scaler_default",
    "squashing_scaler_max10", "robust", "kdi", "none", "kdi_uni", "norm_and_kdi", "kdi_alpha_0.5", "kdi_alpha_2.0_uni",
)  # fmt: skip
CATEGORICAL = ("none", "numeric", "onehot", "ordinal", "ordinal_shuffled", "ordinal_very_common_categories_shuffled")


# --- tables -----------------------------------------------------------------------------------------------------------

Cells = list[Any]
Draw = Callable[[Rng, int], Cells]


def _words(rng: Rng, num_rows: int) -> Cells:
    return [f"word {rng.integers(0, 10_000)}" for _ in range(num_rows)]


def _dates(rng: Rng, num_rows: int) -> Cells:
    moments = np.datetime64("2019-01-01T00:00:00") + rng.integers(0, 2 * 10**8, num_rows).astype("timedelta64[s]")
    return [f"{moment}Z" for moment in moments]


NUMBERS: Mapping[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n).tolist(),
    "skewed": lambda rng, n: np.exp(3 * rng.normal(size=n)).tolist(),
    "huge": lambda rng, n: (rng.normal(size=n) * 1e30).tolist(),
    "minute": lambda rng, n: (rng.normal(size=n) * 1e-12).tolist(),
    "shifted": lambda rng, n: (1e6 + rng.normal(size=n)).tolist(),
    "rounded": lambda rng, n: np.round(rng.normal(size=n), 1).tolist(),
    "counts": lambda rng, n: rng.poisson(3, n).astype(float).tolist(),
    "few": lambda rng, n: rng.integers(0, 3, n).astype(float).tolist(),
    "mostly zero": lambda rng, n: (rng.normal(size=n) * (rng.random(n) < 0.1)).tolist(),
    "signed zeros": lambda rng, n: rng.choice([-0.0, 0.0, 1.0], n).tolist(),
    "long ids": lambda rng, n: rng.choice([1.1e17, 9007199254740993.0, 923456789012345678.0], n).tolist(),
    "constant": lambda _, n: [7.5] * n,
}
CATEGORIES: Mapping[str, Draw] = {
    "names": lambda rng, n: rng.choice(["DE", "FR", "NL", "PT"], n).tolist(),
    "two names": lambda rng, n: rng.choice(["yes", "no"], n).tolist(),
    "words": _words,
    "numbers as text": lambda rng, n: rng.choice(["7995", "5411.5", "12", "0"], n).tolist(),
    "one name": lambda _, n: ["only"] * n,
    "placeholder": lambda rng, n: rng.choice(["__MISSING__", "a", "b", "nan"], n).tolist(),
}
UNSEEN: Mapping[str, Sequence[Any]] = {
    "number": (0.0, -0.0, 1e-30, -3e38, 1e18, 9007199254740992.0, 5.0),
    "category": ("unseen", "", "__MISSING__", "nan", "DE "),
    "datetime": ("2026-05-31T23:59:59Z", "1970-01-01T00:00:00Z", "2050-01-01T12:00:00+02:00"),
}


@dataclass(frozen=True)
class Drawn:
    """A column: its kind and sort, its cells in the context, and its cells in the rows to ask."""

    name: str
    kind: Literal["number", "category", "datetime"]
    sort: str
    cells: Cells
    asked: Cells


def _draw_column(rng: Rng, name: str, num_rows: int, num_asked: int, *, dates: bool) -> Drawn:
    roll = rng.random()
    if dates and roll < 0.1:
        kind, sort, draw = "datetime", "dates", _dates
    elif roll < 0.35:
        kind = "category"
        sort = str(rng.choice(list(CATEGORIES)))
        draw = CATEGORIES[sort]
    else:
        kind = "number"
        sort = str(rng.choice(list(NUMBERS)))
        draw = NUMBERS[sort]
    cells, asked = draw(rng, num_rows), draw(rng, num_asked)
    if rng.random() < 0.4:
        cells = [None if rng.random() < 0.1 else cell for cell in cells]
    for place in range(num_asked):
        other = rng.random()
        if other < 0.08:
            asked[place] = None
        elif other < 0.16:
            asked[place] = UNSEEN[kind][rng.integers(len(UNSEEN[kind]))]
        elif other < 0.3:
            asked[place] = cells[rng.integers(num_rows)]
    return Drawn(name, kind, sort, cells, asked)  # type: ignore[arg-type]


def _draw_target(rng: Rng, task: Task, num_rows: int) -> list[Any]:
    if task is Task.REGRESSION:
        scale = float(10.0 ** rng.integers(-3, 4))
        return (rng.normal(size=num_rows) * scale).tolist()
    num_classes = min(int(rng.integers(2, 11)), num_rows // 3)
    classes = [str(label) for label in range(max(2, num_classes))]
    return [*classes, *rng.choice(classes, num_rows - len(classes))]


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """Everything that one seed draws."""

    seed: int
    architecture: str
    task: Task
    way: Literal["context", "pickle"]
    columns: Sequence[Drawn]
    target: list[Any]
    num_members: int
    fit_mode: str = "fit_with_cache"
    inference_config: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        recipes = [str(config) for config in self.inference_config.get("PREPROCESS_TRANSFORMS", ())]
        others = {key: value for key, value in self.inference_config.items() if key != "PREPROCESS_TRANSFORMS"}
        sorts = sorted({column.sort for column in self.columns})
        return (
            f"seed {self.seed}: {self.architecture} {self.task} {self.way} {self.fit_mode}, {len(self.target)} rows, "
            f"{len(self.columns)} columns of {sorts}, {self.num_members} members, "
            f"{recipes or 'released preset'} {others}"
        )


def draw(seed: int, num_asked: int = 20) -> Drawing:
    """The model and rows of a seed."""
    rng = np.random.default_rng(seed)
    task = Task.CLASSIFICATION if rng.random() < 0.6 else Task.REGRESSION
    way: Literal["context", "pickle"] = "context" if rng.random() < 0.5 else "pickle"
    num_rows = int(10 * 200 ** rng.random() ** 2.2)
    num_columns = int(200 ** rng.random() ** 2.2)
    columns = [
        _draw_column(rng, f"c{place}", num_rows, num_asked, dates=way == "context") for place in range(num_columns)
    ]
    fit_mode = str(rng.choice(["fit_with_cache", "fit_preprocessors"])) if way == "pickle" else "fit_with_cache"
    return Drawing(
        seed=seed,
        architecture=str(rng.choice(ARCHITECTURES)),
        task=task,
        way=way,
        columns=columns,
        target=_draw_target(rng, task, num_rows),
        num_members=int(rng.integers(1, 5)),
        fit_mode=fit_mode,
        inference_config=_draw_config(rng, task) if way == "pickle" and rng.random() < 0.8 else {},
    )


def _draw_config(rng: Rng, task: Task) -> dict[str, Any]:
    if rng.random() < 0.2:
        version = ModelVersion.V2 if rng.random() < 0.5 else ModelVersion.V2_5
        default = InferenceConfig.get_default("multiclass" if task is Task.CLASSIFICATION else "regression", version)
        return {
            "PREPROCESS_TRANSFORMS": default.PREPROCESS_TRANSFORMS,
            "FINGERPRINT_FEATURE": default.FINGERPRINT_FEATURE,
        }
    recipes = [
        PreprocessorConfig(
            str(rng.choice(PRESETS)),  # type: ignore[arg-type]
            categorical_name=str(rng.choice(CATEGORICAL)),  # type: ignore[arg-type]
            append_original=bool(rng.random() < 0.3),
            global_transformer_name=[None, None, "svd", "svd_quarter_components"][rng.integers(4)],  # type: ignore[arg-type]
        )
        for _ in range(rng.integers(1, 3))
    ]
    config: dict[str, Any] = {"PREPROCESS_TRANSFORMS": recipes, "FINGERPRINT_FEATURE": bool(rng.random() < 0.5)}
    if rng.random() < 0.1:
        config["POLYNOMIAL_FEATURES"] = 3
    return config
