"""Random models and rows (`drawn_models.py`), answered by tabpfn and by the engine.

tabpfn's answer is that of its estimator, asked for each row alone through a DataFrame in float32.

    PYTHONPATH=.:tests python tests/engine/differential.py FIRST LAST

compares many seeds and counts what it finds.
"""

from __future__ import annotations

import collections
import itertools
import math
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from drawn_models import Drawing, Drawn, draw
from estimators import imported
from models import write_tiny
from tabpfn import TabPFNClassifier, TabPFNRegressor

from serve.core import QUANTILES, Batch, Column, ColumnKind, Context, EnsembleOptions, ModelDefinition, QueryTable, Task
from serve.core.errors import InvalidInput
from serve.engine import cleaning, tabpfn_estimators
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.checks.warmup import warm_up
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.estimators import caches as estimator_caches
from serve.engine.row_encoder import RowEncoder
from serve.settings import EngineSettings

Matrix = np.ndarray[Any, Any]

TOLERANCE = 1e-5
"""Largest difference from tabpfn's answer: of a probability, or relative to a regressor's largest answer."""
COMPANY_TOLERANCE = 1e-6
"""Largest difference between a row alone and in company."""
SHARE_TOLERANCE = 3e-6
"""Beside bars that are nearly empty a quantile moves with the last bit, in tabpfn alike (docs/models.md). There the
share of tabpfn's distribution below our quantile is compared."""


def _frame(columns: Sequence[Drawn], *, asked: bool) -> pd.DataFrame:
    frame = {}
    for column in columns:
        cells = column.asked if asked else column.cells
        dtype = "float64" if column.kind == "number" else "object"
        frame[column.name] = pd.Series(
            [math.nan if cell is None and dtype == "float64" else cell for cell in cells], dtype=dtype
        )
    return pd.DataFrame(frame)


class Library:
    """tabpfn's estimator, asked for each row of a frame alone.

    Attributes:
        answers: float64 [rows, outputs]; NaN where it has none.
    """

    def __init__(self, estimator: Any, frame: pd.DataFrame) -> None:
        self._estimator, self._frame = estimator, frame
        num_outputs = len(estimator.classes_) if hasattr(estimator, "classes_") else 9
        self.answers = np.full((len(frame), num_outputs), np.nan)
        for row in range(len(frame)):
            try:
                self.answers[row] = tabpfn_estimators.predict_outputs(estimator, frame.iloc[[row]])[0]
            except Exception:  # whatever it raises, it has no answer
                continue

    def are_quantiles(self, row: int, values: Matrix) -> bool:
        """Whether a regressor's median and quantiles cut off their shares of tabpfn's distribution for the row."""
        full = self._estimator.predict(self._frame.iloc[[row]], output_type="full")
        logits = full["logits"].float().reshape(1, -1)
        shares = full["criterion"].cdf(logits, torch.tensor(values[None], dtype=torch.float32))[0].numpy()
        return bool(np.abs(shares - np.array([0.5, *QUANTILES])).max() <= SHARE_TOLERANCE)


class Workshop:
    """Makes both sides of a drawing; keeps the checkpoints."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.engine = TabPFNEngine(EngineSettings(), max_batch_rows=32)

    def checkpoint(self, architecture: str, task: Task) -> Path:
        """A tiny network of random weights."""
        version = architecture.removeprefix("tabpfn_").replace("_", ".")
        path = self._folder / task / f"tiny-{version}.safetensors"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_tiny(architecture, path, task)
        return path

    def context_definition(self, drawing: Drawing) -> ModelDefinition:
        """The model as the store hands it over."""
        columns = tuple(Column(column.name, ColumnKind(column.kind)) for column in drawing.columns)
        cells = {column.name: column.cells for column in drawing.columns}
        checkpoint = self.checkpoint(drawing.architecture, drawing.task)
        return ModelDefinition(
            name="drawn",
            version="1",
            context=Context(drawing.task, columns, cells, drawing.target),
            checkpoint_path=str(checkpoint),
            checkpoint_name="random",
            licence="Apache-2.0",
            options=EnsembleOptions(num_members=drawing.num_members, random_state=drawing.seed % 100),
        )

    def library(self, drawing: Drawing) -> tuple[Library, ModelDefinition | None]:
        """tabpfn's answers, and the definition of a context. Raises what a fit raises."""
        if drawing.way == "context":
            definition = self.context_definition(drawing)
            reader = RowEncoder(definition.context.columns)
            raw = [
                reader.read(QueryTable.from_columns({c.name: c.asked if asked else c.cells for c in drawing.columns}))
                for asked in (False, True)
            ]
            whole = [cleaning.context_frame(definition, cells) for cells in raw]
            asked_frame = whole[1].astype({name: whole[0][name].dtype for name in whole[0]})
            estimator = tabpfn_estimators.build_estimator(definition, whole[0], "fit_with_cache", "cpu", "float32")
            return Library(estimator, asked_frame), definition
        kind = TabPFNClassifier if drawing.task is Task.CLASSIFICATION else TabPFNRegressor
        estimator = kind(
            model_path=str(self.checkpoint(drawing.architecture, drawing.task)),
            device="cpu",
            n_estimators=drawing.num_members,
            random_state=drawing.seed % 100,
            fit_mode=drawing.fit_mode,  # type: ignore[arg-type]
            inference_precision=torch.float32,
            inference_config=dict(drawing.inference_config) or None,
        )
        estimator.fit(_frame(drawing.columns, asked=False), np.asarray(drawing.target))
        # As it is in a file: products of arrays that were read back may differ in the last bit (docs/models.md).
        saved = pickle.dumps(estimator)
        (self._folder / "drawn.pkl").write_bytes(saved)
        return Library(pickle.loads(saved), _frame(drawing.columns, asked=True)), None

    def cached_library(self, drawing: Drawing) -> Library:
        """The answers of a pickle that was fitted without KV caches, by the same fit with them."""
        estimator = pickle.loads((self._folder / "drawn.pkl").read_bytes())
        estimator_caches.build_caches(estimator)
        return Library(estimator, _frame(drawing.columns, asked=True))

    def serve(self, definition: ModelDefinition | None) -> TabPFNContext:
        """The engine's context, past the checks of a start."""
        if definition is None:
            definition = imported(self._folder / "drawn.pkl", self._folder / "made")
            definition = replace(definition, name="drawn")
        context = self.engine.fit(definition)
        canaries = canary_rows(context.encode_context())
        warm_up(self.engine, context, canaries, (1, 8, 32), TOLERANCE)
        check_parity(self.engine, context, canaries, TOLERANCE)
        return context


@dataclass(frozen=True)
class Verdict:
    """What a seed gave.

    Attributes:
        outcome: `equal`, `differs`, `company` (alone and in company differ), `refused` (a model that tabpfn fits),
            `failed` (rows that the encoder took), or `unfit` (tabpfn itself refuses the table).
        worst: largest difference from tabpfn, and between alone and in company.
        num_rows: rows compared; num_refused: rows that the encoder refused.
    """

    outcome: str
    detail: str = ""
    worst: tuple[float, float] = (0.0, 0.0)
    num_rows: int = 0
    num_refused: int = 0


def _encode(context: TabPFNContext, drawing: Drawing) -> Iterator[Matrix | None]:
    """Each row's matrix; None for a row that the encoder refuses."""
    names = [column.name for column in context.columns]
    for cells in zip(*(column.asked for column in drawing.columns), strict=True):
        record = dict(zip(names, cells, strict=True))
        try:
            yield context.encode(QueryTable.from_records([record]))
        except InvalidInput:
            yield None


def compare(drawing: Drawing, workshop: Workshop) -> Verdict:
    """Both answers to the rows of a drawing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            library, definition = workshop.library(drawing)
        except Exception as error:
            return Verdict("unfit", f"{type(error).__name__}: {str(error)[:200]}")
        try:
            context = workshop.serve(definition)
        except Exception as error:
            return Verdict("refused", f"{type(error).__name__}: {error}")
        encoded = list(_encode(context, drawing))
        taken = [place for place, rows in enumerate(encoded) if rows is not None]
        rows = np.concatenate([encoded[place] for place in taken])  # type: ignore[arg-type]
        try:
            alone = np.concatenate([workshop.engine.predict(Batch(context, rows[i : i + 1])) for i in range(len(rows))])
            together = workshop.engine.predict(Batch(context, rows))
        except Exception as error:
            return Verdict("failed", f"{type(error).__name__}: {error}")
        verdict = _judge(drawing, taken, library, alone, together)
        if verdict.outcome == "differs" and drawing.fit_mode == "fit_preprocessors":
            # tabpfn's two modes may differ; the promise is its answer with KV caches (docs/models.md)
            return _judge(drawing, taken, workshop.cached_library(drawing), alone, together)
        return verdict


def _judge(drawing: Drawing, taken: Sequence[int], library: Library, alone: Matrix, together: Matrix) -> Verdict:
    expected = library.answers
    wanted = expected[list(taken)]
    has_answer = np.isfinite(wanted).all(axis=1)
    if not has_answer.any():
        return Verdict("unfit", "tabpfn answers no row with numbers")
    scale = 1.0
    if drawing.task is Task.REGRESSION:
        scale = max(1e-30, float(np.abs(wanted[has_answer]).max()))
    beside, company = np.abs(alone - wanted) / scale, np.abs(alone - together) / scale
    if drawing.task is Task.REGRESSION:
        moved = ((beside[:, 1:] > TOLERANCE) | (company[:, 1:] > COMPANY_TOLERANCE)).any(axis=1)
        for row in np.flatnonzero(has_answer & moved):
            if all(library.are_quantiles(taken[row], values[row, 1:]) for values in (alone, together)):
                beside[row, 1:] = company[row, 1:] = 0.0
    beside = np.where(has_answer[:, None], beside, 0.0)
    worst = (float(beside.max()), float(company.max()))
    place = taken[int(beside.max(axis=1).argmax())]
    asked = {column.name: column.asked[place] for column in drawing.columns}
    counts: dict[str, Any] = {"worst": worst, "num_rows": len(taken), "num_refused": len(expected) - len(taken)}
    if not worst[0] <= TOLERANCE:
        return Verdict("differs", f"{worst[0]:.2g} at row {place}: {str(asked)[:300]}", **counts)
    if not worst[1] <= COMPANY_TOLERANCE:
        return Verdict("company", f"{worst[1]:.2g}", **counts)
    answered = np.isfinite(expected).all(axis=1)
    answered[list(taken)] = False
    return Verdict("equal", "rows refused that tabpfn answers" if answered.any() else "", **counts)


def main(first: int, last: int) -> None:
    """Compare the seeds, print what is not equal as it comes, then the counts."""
    torch.set_num_threads(1)
    outcomes: collections.Counter[tuple[str, ...]] = collections.Counter()
    num_rows = num_refused = 0
    worst = [0.0, 0.0]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        for seed in range(first, last):
            drawing = draw(seed)
            verdict = compare(drawing, workshop)
            outcomes[verdict.outcome,] += 1
            outcomes[verdict.outcome, drawing.architecture, drawing.way] += 1
            num_rows, num_refused = num_rows + verdict.num_rows, num_refused + verdict.num_refused
            if verdict.outcome == "equal":
                worst = [max(pair) for pair in zip(worst, verdict.worst, strict=True)]
            if verdict.outcome not in ("equal", "unfit") or verdict.detail:
                print(f"{verdict.outcome}: {verdict.detail}\n    {drawing}", flush=True)
            if (seed - first) % 50 == 49:
                totals = {key[0]: count for key, count in outcomes.items() if len(key) == 1}
                print(f"{seed + 1 - first} models, {time.monotonic() - started:.0f} s, {totals}", flush=True)
    print(f"seeds {first} to {last - 1}: {num_rows} rows compared, {num_refused} refused by the encoder")
    print(f"worst of the equal ones: {worst[0]:.2g} from tabpfn, {worst[1]:.2g} between alone and in company")
    for key, count in sorted(outcomes.items(), key=lambda item: (len(item[0]), item[0])):
        print(f"{' '.join(key)}: {count}")


if __name__ == "__main__":
    main(*map(int, itertools.islice(sys.argv, 1, 3)))
