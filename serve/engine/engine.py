"""TabPFNEngine: fits contexts and answers batches on one device, by the library's own cached forward.

What is always true:
- only `fit_mode="fit_with_cache"` answers requests: the one mode in which a test row's answer does not depend on the
  other rows of its batch (docs/architecture.md);
- a batch is a float64 matrix whose rows were encoded alone, padded with copies of its first row up to a row bucket, so
  that a row always meets the same few shapes; the padding is cut off again;
- one thread calls `fit`, `predict` and `reference` (the estimator's predict is not thread-safe).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from serve.config import EngineSettings
from serve.core import REGRESSION_STATISTICS, Batch, Column, FittedContext, Matrix, ModelDefinition, Task
from serve.engine import library
from serve.engine.row_encoder import RowEncoder
from serve.engine.warmup import bucket_of, row_buckets
from serve.errors import EngineError, InvalidInput, InvalidModel, StartupError

_log = logging.getLogger(__name__)


class TabPFNContext:
    """A fitted context: the estimator with its KV cache, the row encoder, and the prior correction."""

    def __init__(self, definition: ModelDefinition, device: str, precision: str) -> None:
        self.definition = definition
        self._device, self._precision = device, precision
        context = definition.context
        reader = RowEncoder(context.columns)
        raw = reader.read_records(_records(context.columns, context.cells, context.num_rows))
        self._frame = library.context_frame(definition, raw)
        estimator = library.build_estimator(definition, self._frame, "fit_with_cache", device, precision)
        self._encoder = RowEncoder(context.columns, library.learn_codings(estimator, self._frame))
        self._rows = self._encoder.encode_raw(raw)
        _compare_cleaning(self._rows, library.clean(estimator, self._frame), list(self._frame.columns))
        self.estimator = library.on_matrices(estimator)
        self.classes = tuple(map(str, estimator.classes_)) if context.task is Task.CLASSIFICATION else ()
        self._class_weights = _class_weights(definition, self.classes)

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.definition.context.columns

    @property
    def num_outputs(self) -> int:
        return len(self.classes) or len(REGRESSION_STATISTICS)

    def encode_context(self) -> Matrix:
        return self._rows

    def encode_records(self, records: Sequence[Mapping[str, Any]]) -> Matrix:
        return self._encoder.encode_records(records)

    def encode_table(self, columns: Sequence[str], data: Sequence[Sequence[Any]]) -> Matrix:
        return self._encoder.encode_table(columns, data)

    def answer(self, rows: Matrix) -> Matrix:
        """Cached outputs of encoded rows, corrected to the true class priors."""
        return self._correct(library.predict_outputs(self.estimator, rows))

    def answer_uncached(self, rows: Matrix) -> Matrix:
        """The same from an estimator without KV cache, built for this call and dropped."""
        estimator = library.build_estimator(
            self.definition, self._frame, "fit_preprocessors", self._device, self._precision
        )
        return self._correct(library.predict_outputs(library.on_matrices(estimator), rows))

    def _correct(self, outputs: Matrix) -> Matrix:
        if self._class_weights is None:
            return outputs
        weighted = outputs * self._class_weights
        return np.asarray(weighted / weighted.sum(axis=1, keepdims=True), dtype=np.float64)


class TabPFNEngine:
    """The Engine on one named device."""

    def __init__(self, settings: EngineSettings, max_batch_rows: int = 256) -> None:
        self._settings = settings
        self._buckets = row_buckets(max_batch_rows)
        if settings.device.startswith("cuda") and not torch.cuda.is_available():
            raise StartupError(f"device {settings.device} was asked for, but torch {torch.__version__} sees no GPU")
        torch.set_num_threads(settings.num_threads)

    @property
    def device(self) -> str:
        return self._settings.device

    def fit(self, model: ModelDefinition) -> TabPFNContext:
        """Fit the library on the model's context and check that our encoding is its own. Raises InvalidModel."""
        place = f"model {model.name!r} version {model.version!r}"
        try:
            return TabPFNContext(model, self.device, self._settings.inference_precision)
        except InvalidInput as error:
            raise InvalidModel(f"{place}: context {error}") from error
        except InvalidModel as error:
            raise InvalidModel(f"{place}: {error}") from error
        except Exception as error:
            raise InvalidModel(
                f"{place}: tabpfn could not fit its context with {model.checkpoint_path}: {error}"
            ) from error

    def predict(self, batch: Batch) -> Matrix:
        """Outputs float64 [rows, outputs]. Raises EngineError."""
        context, num_rows = _ours(batch.context), len(batch.rows)
        padding = bucket_of(num_rows, self._buckets) - num_rows
        rows = np.concatenate([batch.rows, np.repeat(batch.rows[:1], padding, axis=0)])
        try:
            return context.answer(rows)[:num_rows]
        except Exception as error:
            raise EngineError(f"tabpfn failed on a batch of {num_rows} rows: {error}") from error

    def reference(self, batch: Batch) -> Matrix:
        """The same answers without a KV cache, in one call of the library; slow."""
        return _ours(batch.context).answer_uncached(batch.rows)

    def close(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _ours(context: FittedContext) -> TabPFNContext:
    assert isinstance(context, TabPFNContext), "this is a bug: a context of another engine"
    return context


def _records(columns: Sequence[Column], cells: Mapping[str, Sequence[Any]], num_rows: int) -> list[dict[str, Any]]:
    return [{column.name: cells[column.name][row] for column in columns} for row in range(num_rows)]


def _compare_cleaning(ours: Matrix, theirs: Matrix, names: Sequence[str]) -> None:
    """Our encoding of the whole context must be the library's, to the bit."""
    differs = ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
    if differs.any():
        row, column = map(int, np.argwhere(differs)[0])
        raise InvalidModel(
            f"our encoding of the context differs from tabpfn's at row {row}, column {names[column]!r}: "
            f"{ours[row, column]} and {theirs[row, column]}; is this tabpfn release supported?"
        )


def _class_weights(definition: ModelDefinition, classes: Sequence[str]) -> Matrix | None:
    """True prior over the context's own share, per class; None without a stated prior."""
    priors = definition.context.class_priors
    if priors is None or not classes:
        return None
    if set(priors) != set(classes):
        raise InvalidModel(f"class_priors name {sorted(priors)}, the context's classes are {sorted(classes)}")
    target = list(definition.context.target)
    return np.array([priors[label] / (target.count(label) / len(target)) for label in classes], dtype=np.float64)
