"""Fits the context of a model definition: tabpfn fits it, and the row encoder must encode it as tabpfn does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from serve.core import Matrix, ModelDefinition, QueryTable
from serve.core.errors import InvalidModel
from serve.engine import cached_fit, cleaning, tabpfn_estimators
from serve.engine.checks import modes
from serve.engine.row_encoder import RowEncoder
from serve.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted context.

    Attributes:
        estimator: tabpfn's, with KV caches on the device.
        encoder: encodes the rows of requests for it.
        rows: encoded rows for the start-up checks, float64 [rows, features].
    """

    estimator: tabpfn_estimators.Estimator
    encoder: RowEncoder
    rows: Matrix


class Fit(Protocol):
    """The source of a fitted context.

    Attributes:
        effective_definition: the model definition with the categories and the number of members that will be fitted,
            from which `memory.sizes.predict_bytes` predicts memory.
    """

    effective_definition: ModelDefinition

    def fit(self) -> Fitted:
        """Fit; called once, takes seconds to minutes. Raises InvalidModel."""

    def predict_uncached(self, rows: Matrix) -> Matrix:
        """tabpfn's answer to each clean row as if asked for it alone: float64 [rows, outputs].

        The estimator is made for this call and then dropped. It has no KV cache, unless the context is gone and only
        the cache is left.
        """


class ContextFit:
    """A `Fit` of the context in the definition. KV caches come from `engine.kv_cache_dir` where it holds this fit's."""

    def __init__(self, definition: ModelDefinition, settings: EngineSettings, precision: str) -> None:
        self.effective_definition = definition
        self._settings, self._precision = settings, precision
        self._device = torch.device(settings.device)

    def fit(self) -> Fitted:
        context = self.effective_definition.context
        reader = RowEncoder(context.columns)
        raw = reader.read(QueryTable.from_columns(dict(context.cells)))
        self._frame = cleaning.context_frame(self.effective_definition, raw)
        estimator = self._fit("fit_with_cache")
        encoder = RowEncoder(context.columns, cleaning.learn_codings(estimator, self._frame))
        rows = encoder.encode_raw(raw)
        _check_encoding(rows, estimator, self._frame)
        return Fitted(estimator, encoder, rows)

    def _fit(self, fit_mode: tabpfn_estimators.FitMode) -> tabpfn_estimators.Estimator:
        """tabpfn's estimator; its KV caches come from a file if the file holds those of this fit."""
        folder, definition, device = self._settings.kv_cache_dir, self.effective_definition, self._settings.device
        if folder is None or fit_mode != "fit_with_cache":
            return tabpfn_estimators.build_estimator(definition, self._frame, fit_mode, device, self._precision)
        name = f"{definition.name}-{definition.version}-{self._device.type}.safetensors"
        return cached_fit.build_with_file(definition, self._frame, device, self._precision, folder / name)

    def predict_uncached(self, rows: Matrix) -> Matrix:
        return modes.predict_uncached(self._fit("fit_preprocessors"), rows, lambda: self._fit("fit_with_cache"))


def _check_encoding(encoded: Matrix, estimator: tabpfn_estimators.Estimator, frame: pd.DataFrame) -> None:
    """Raises InvalidModel unless the row encoder and tabpfn's cleaning give the same bits for the whole context.

    tabpfn cleans the context at once, and may then keep the sign of a zero that a row alone loses. So where a zero is
    negative, the row alone decides.
    """
    cleaned = np.array(cleaning.clean(estimator, frame))
    negative = _is_negative_zero(encoded) | _is_negative_zero(cleaned)
    for row in sorted(set(negative.argmax(axis=0)[negative.any(axis=0)].tolist())):
        cleaned[row] = cleaning.clean(estimator, frame[row : row + 1])[0]
        negative[row] = False
    differs = (encoded.view(np.int64) != cleaned.view(np.int64)) & ~(negative & (encoded == cleaned))
    if differs.any():
        row, column = map(int, np.argwhere(differs)[0])
        raise InvalidModel(
            f"the row encoder and tabpfn's cleaning differ at context row {row}, column {frame.columns[column]!r}: "
            f"{encoded[row, column]} and {cleaned[row, column]}; install the tabpfn release that this server requires"
        )


def _is_negative_zero(matrix: Matrix) -> NDArray[np.bool_]:
    return np.asarray((matrix == 0) & np.signbit(matrix), dtype=np.bool_)
