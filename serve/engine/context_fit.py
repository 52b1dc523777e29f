"""A context of the store as the engine's source of a fitted context: the library fits it, our encoding is its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from serve.core import Matrix, ModelDefinition, QueryTable
from serve.core.errors import InvalidModel
from serve.engine import library
from serve.engine.row_encoder import RowEncoder
from serve.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Fitted:
    """An estimator with KV caches, how its rows are encoded, and encoded rows to check it with [rows, features]."""

    estimator: library.Estimator
    encoder: RowEncoder
    rows: Matrix


class Fit(Protocol):
    """Where a fitted context comes from. `sized` is the definition as `memory.predict_bytes` shall count it."""

    sized: ModelDefinition

    def fit(self) -> Fitted:
        """Called once; seconds to minutes. Raises InvalidModel."""

    def answer_plainly(self, rows: Matrix) -> Matrix:
        """What the library says of clean rows, by an estimator made for this call and dropped; without a KV cache
        wherever the context is there to do without. Float64 [rows, outputs]."""


class ContextFit:
    """A `Fit` of the context in the definition."""

    def __init__(self, definition: ModelDefinition, settings: EngineSettings, precision: str) -> None:
        self.sized = definition
        self._settings, self._precision = settings, precision
        self._device = torch.device(settings.device)

    def fit(self) -> Fitted:
        context = self.sized.context
        reader = RowEncoder(context.columns)
        raw = reader.read(QueryTable.from_columns(dict(context.cells)))
        self._frame = library.context_frame(self.sized, raw)
        estimator = self._fit("fit_with_cache")
        encoder = RowEncoder(context.columns, library.learn_codings(estimator, self._frame))
        rows = encoder.encode_raw(raw)
        _compare_cleaning(rows, library.clean(estimator, self._frame), list(self._frame.columns))
        return Fitted(estimator, encoder, rows)

    def _fit(self, fit_mode: library.FitMode) -> library.Estimator:
        """The library's estimator, its KV caches from a file where there is one of this very fit."""
        folder, definition, device = self._settings.kv_cache_dir, self.sized, self._settings.device
        if folder is None or fit_mode != "fit_with_cache":
            return library.build_estimator(definition, self._frame, fit_mode, device, self._precision)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{definition.name}-{definition.version}-{self._device.type}.safetensors"
        return library.build_with_file(definition, self._frame, device, self._precision, folder / name)

    def answer_plainly(self, rows: Matrix) -> Matrix:
        return library.predict_outputs(library.on_matrices(self._fit("fit_preprocessors")), rows)


def _compare_cleaning(ours: Matrix, theirs: Matrix, names: Sequence[str]) -> None:
    """Our encoding of the whole context must be the library's, to the bit."""
    differs = ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
    if differs.any():
        row, column = map(int, np.argwhere(differs)[0])
        raise InvalidModel(
            f"our encoding of the context differs from tabpfn's at row {row}, column {names[column]!r}: "
            f"{ours[row, column]} and {theirs[row, column]}; is this tabpfn release supported?"
        )
