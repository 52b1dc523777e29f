"""A fitted estimator as the engine's source of a fitted context, where `engine.py` else fits a context itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from serve.core import EnsembleOptions, Matrix, ModelDefinition, Task
from serve.core.errors import InvalidModel
from serve.engine import library
from serve.engine.context_fit import Fitted
from serve.engine.estimators import caches as estimator_caches
from serve.engine.estimators import file as estimator_file
from serve.engine.estimators.schema import read_schema


class EstimatorFit:
    """One estimator of the store, read onto the CPU; then with KV caches on the device.

    A `Fit`; `sized` is the definition with what `memory.predict_bytes` counts, categories and members as they are.
    """

    def __init__(self, definition: ModelDefinition, device: str, precision: str) -> None:
        """Raises InvalidModel."""
        self._definition, self._device, self._precision = definition, device, precision
        self._stored = self._read()
        self._schema = read_schema(self._stored.estimator)
        context = definition.context
        if self._schema.columns != context.columns:
            raise InvalidModel("the manifest's columns are not those of its estimator")
        self.sized = dataclasses.replace(
            definition,
            context=dataclasses.replace(context, cells=self._schema.cells()),
            options=EnsembleOptions(num_members=self._stored.estimator.n_estimators_),
        )

    def _read(self) -> estimator_file.StoredEstimator:
        assert self._definition.estimator_path is not None
        return estimator_file.read(
            Path(self._definition.estimator_path),
            Path(self._definition.checkpoint_path),
            is_classifier=self._definition.context.task is Task.CLASSIFICATION,
        )

    def fit(self) -> Fitted:
        """With KV caches: the estimator's own, or built now. Raises InvalidModel."""
        estimator = self._stored.estimator
        self._check_device()
        estimator_caches.prepare(estimator, self._device, self._precision)
        if not estimator_caches.has_caches(estimator):
            estimator_caches.build_caches(estimator)
        return Fitted(estimator, self._schema.encoder, self._schema.rows())

    def _check_device(self) -> None:
        estimator, built_on = self._stored.estimator, self._stored.built_on
        kind = self._device.partition(":")[0]
        draws = estimator_caches.draws_column_embeddings(estimator.models_[0])
        if draws and estimator_caches.has_caches(estimator) and built_on != kind:
            where = "on a device that its file does not tell" if built_on is None else f"on {built_on}"
            raise InvalidModel(
                f"its KV caches were built {where}, and this network's answer wrongly on any other kind than that; "
                f'serve it there, or save it fitted with fit_mode="fit_preprocessors" (here: {kind})'
            )

    def answer_plainly(self, rows: Matrix) -> Matrix:
        """What the estimator itself says of clean rows, read anew for this call, in its own fit mode.

        Row by row where its preprocessing takes fingerprints: in a batch the library's own may flip.
        """
        estimator = self._read().estimator
        estimator_caches.prepare(estimator, self._device, self._precision)
        matrices = library.on_matrices(estimator)
        if not estimator.inference_config_.FINGERPRINT_FEATURE:
            return library.predict_outputs(matrices, rows)
        return np.concatenate([library.predict_outputs(matrices, rows[i : i + 1]) for i in range(len(rows))])
