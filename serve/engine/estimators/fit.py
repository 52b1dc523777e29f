"""A fitted estimator of the store as the source of a fitted context; for a context the source is `context_fit.py`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from serve.core import EnsembleOptions, Matrix, ModelDefinition, Task
from serve.core.errors import InvalidModel
from serve.engine.checks import modes
from serve.engine.context_fit import Fitted
from serve.engine.estimators import caches as estimator_caches
from serve.engine.estimators import file as estimator_file
from serve.engine.estimators.schema import read_schema
from serve.engine.tabpfn_estimators import Estimator


class EstimatorFit:
    """A `Fit` of one estimator of the store: read onto the CPU, then moved to the device with KV caches."""

    def __init__(self, definition: ModelDefinition, device: str, precision: str) -> None:
        """Read the estimator.

        Args:
            device: `cpu` or `cuda:N`.
            precision: "auto", or the name of a torch dtype.

        Raises:
            InvalidModel: the files cannot be read, or their columns are not the manifest's.
        """
        self._definition, self._device, self._precision = definition, device, precision
        self._stored = self._read()
        self._schema = read_schema(self._stored.estimator)
        context = definition.context
        if self._schema.columns != context.columns:
            raise InvalidModel("the manifest's columns are not those of its estimator; import its pickle again")
        self.effective_definition = dataclasses.replace(
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
        """The estimator with its own KV caches, or with caches built now. Raises InvalidModel."""
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
            where = "on a device that its file does not state" if built_on is None else f"on {built_on}"
            raise InvalidModel(
                f"its KV caches were built {where}, and KV caches of this network answer wrongly on another kind of "
                f'device, here {kind}; serve it there, or save it fitted with fit_mode="fit_preprocessors"'
            )

    def predict_uncached(self, rows: Matrix) -> Matrix:
        """The estimator's own answer to clean rows, in its own fit mode; the files are read anew for this call.

        Rows that tabpfn answers otherwise with its KV cache are answered with it (`checks/modes.py`).
        """
        estimator = self._prepared()
        return modes.predict_uncached(estimator, rows, self._prepared_with_caches)

    def _prepared(self) -> Estimator:
        estimator = self._read().estimator
        estimator_caches.prepare(estimator, self._device, self._precision)
        return estimator

    def _prepared_with_caches(self) -> Estimator:
        estimator = self._prepared()
        estimator_caches.build_caches(estimator)
        return estimator
