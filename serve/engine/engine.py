"""TabPFNEngine: fits contexts and answers batches on one device.

The library fits; answers come from our own compiled ensemble where the checkpoint's architecture has a forward of ours,
else from the library's cached predict. What is always true:
- only `fit_mode="fit_with_cache"` answers requests: the one mode in which a test row's answer does not depend on the
  other rows of its batch (docs/architecture.md);
- a batch is a float64 matrix whose rows were encoded alone, padded with copies of its first row up to a row bucket, so
  that a row always meets the same few shapes; the padding is cut off again;
- our answers were compared with the library's cached ones on rows of the context before the first request;
- one thread calls `fit`, `predict` and `reference` (the estimator's predict is not thread-safe).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from serve.core import REGRESSION_STATISTICS, Batch, Column, FittedContext, Matrix, ModelDefinition, QueryTable, Task
from serve.core.errors import EngineError, InvalidInput, InvalidModel, OutOfMemory, StartupError
from serve.core.row_buckets import bucket_of, row_buckets
from serve.engine import library
from serve.engine.checks.parity import canary_rows, compare_answers
from serve.engine.compiled import CompiledEnsemble, can_compile
from serve.engine.context_fit import ContextFit, Fit
from serve.engine.estimators.fit import EstimatorFit
from serve.engine.execution.precision import resolve_precision
from serve.engine.memory.sizes import check_fits, count_parameters, predict_bytes
from serve.settings import EngineSettings

_log = logging.getLogger(__name__)


class TabPFNContext:
    """A fitted context: the row encoder, what answers clean rows, and the prior correction."""

    def __init__(self, definition: ModelDefinition, settings: EngineSettings, max_batch_rows: int) -> None:
        self.definition = definition
        self._settings = settings
        self._device = torch.device(settings.device)
        self._ours = settings.backend == "compiled"
        # ours is built from float32 caches, which it casts itself
        self._library_precision = "float32" if self._ours else settings.inference_precision
        num_parameters = count_parameters(Path(definition.checkpoint_path))
        self._precision = resolve_precision(
            settings.inference_precision, settings.kv_cache_precision, self._device, num_parameters
        )
        if definition.estimator_path is not None and not settings.worker_process:
            raise InvalidModel(
                "its fitted estimator is a pickle, which only the engine's worker process opens; "
                "set engine.worker_process to true"
            )
        self._fit: Fit = (
            ContextFit(definition, settings, self._library_precision)
            if definition.estimator_path is None
            else EstimatorFit(definition, settings.device, self._library_precision)
        )
        need = predict_bytes(
            self._fit.sized, settings.device, self._library_precision, max_batch_rows,
            self._precision if self._ours else None,
        )  # fmt: skip
        check_fits(need, settings.device)
        fitted = self._fit.fit()
        self.encoder, self._rows = fitted.encoder, fitted.rows
        self._estimator = library.on_matrices(fitted.estimator)
        self._compiled = self._compile() if self._ours else None
        self.classes = library.class_names(fitted.estimator)
        self._class_weights = _class_weights(definition, self.classes)

    def _compile(self) -> CompiledEnsemble | None:
        """Our own answerer, proven on canary rows; then the library's KV caches go. None if it cannot be."""
        if not can_compile(self._estimator):
            return None
        compiled = CompiledEnsemble(self._estimator, self._device, self._precision, self._rows[:1])
        canaries = canary_rows(self._rows)
        # each row alone: in a batch the library's own fingerprints may flip (docs/architecture.md)
        alone = [library.predict_outputs(self._estimator, canaries[i : i + 1]) for i in range(len(canaries))]
        compare_answers(
            "by our forward",
            compiled(canaries),
            "by the library's",
            np.concatenate(alone),
            self._settings.parity_tolerance,
            is_probability=self.definition.context.task is Task.CLASSIFICATION,
        )
        self._estimator.executor_.kv_caches = []
        return compiled

    @property
    def backend(self) -> str:
        """What computes the answers: "compiled", or "tabpfn" by setting or where no compiled forward pass exists."""
        return "tabpfn" if self._compiled is None else "compiled"

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.definition.context.columns

    @property
    def num_outputs(self) -> int:
        return len(self.classes) or len(REGRESSION_STATISTICS)

    def encode_context(self) -> Matrix:
        return self._rows

    def encode(self, table: QueryTable) -> Matrix:
        return self.encoder.encode(table)

    def answer(self, rows: Matrix) -> Matrix:
        """Cached outputs of encoded rows, corrected to the true class priors."""
        if self._compiled is not None:
            return self._correct(self._compiled(rows))
        return self._correct(library.predict_outputs(self._estimator, rows))

    def answer_uncached(self, rows: Matrix) -> Matrix:
        """The same by the library's plain road; see `Fit.answer_plainly`."""
        return self._correct(self._fit.answer_plainly(rows))

    def _correct(self, outputs: Matrix) -> Matrix:
        if self._class_weights is None:
            return outputs
        weighted = outputs * self._class_weights
        return np.asarray(weighted / weighted.sum(axis=1, keepdims=True), dtype=np.float64)


class TabPFNEngine:
    """The Engine on one named device."""

    def __init__(self, settings: EngineSettings, max_batch_rows: int = 256) -> None:
        self._settings = settings
        self._max_batch_rows = max_batch_rows
        self._buckets = row_buckets(max_batch_rows)
        if settings.device.startswith("cuda") and not torch.cuda.is_available():
            raise StartupError(f"device {settings.device} was asked for, but torch {torch.__version__} sees no GPU")
        torch.set_num_threads(settings.num_threads)

    @property
    def device(self) -> str:
        return self._settings.device

    @property
    def lost(self) -> bool:
        return False  # it would take this process along

    def fit(self, model: ModelDefinition) -> TabPFNContext:
        """Fit the library on the model's context and check that our encoding is its own. Raises InvalidModel."""
        place = f"model {model.name!r} version {model.version!r}"
        try:
            return TabPFNContext(model, self._settings, self._max_batch_rows)
        except InvalidInput as error:
            raise InvalidModel(f"{place}: context {error}") from error
        except InvalidModel as error:
            raise InvalidModel(f"{place}: {error}") from error
        except StartupError as error:
            raise StartupError(f"{place}: {error}") from error
        except Exception as error:
            raise InvalidModel(
                f"{place}: tabpfn could not fit its context with {model.checkpoint_path}: {error}"
            ) from error

    def predict(self, batch: Batch) -> Matrix:
        """Outputs float64 [rows, outputs]. Raises OutOfMemory, EngineError."""
        context, num_rows = _ours(batch.context), len(batch.rows)
        padding = bucket_of(num_rows, self._buckets) - num_rows
        rows = np.concatenate([batch.rows, np.repeat(batch.rows[:1], padding, axis=0)])
        try:
            return context.answer(rows)[:num_rows]
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemory(f"no memory for {len(rows)} rows on {self.device}: {error}") from error
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


def _class_weights(definition: ModelDefinition, classes: Sequence[str]) -> Matrix | None:
    """True prior over the context's own share, per class; None without a stated prior."""
    priors = definition.context.class_priors
    if priors is None or not classes:
        return None
    if set(priors) != set(classes):
        raise InvalidModel(f"class_priors name {sorted(priors)}, the context's classes are {sorted(classes)}")
    target = list(definition.context.target)
    return np.array([priors[label] / (target.count(label) / len(target)) for label in classes], dtype=np.float64)
