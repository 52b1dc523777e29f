"""TabPFNEngine: fits contexts and answers batches on one device.

tabpfn fits. A compiled ensemble answers where the checkpoint's architecture has a compiled forward pass; otherwise
tabpfn's cached prediction answers. What is always true:
- only estimators fitted with `fit_mode="fit_with_cache"` answer requests. It is the one mode in which a test row's
  answer does not depend on the other rows of its batch (docs/decisions);
- a batch is a float64 matrix whose rows were encoded alone. It is padded with copies of its first row up to a row
  bucket, so that a row always meets the same few shapes; the answers to the padding are cut off;
- the compiled answers were compared with tabpfn's cached ones, on rows of the context, before the first request;
- one thread calls `fit`, `launch` and `reference`, because the estimator's predict is not thread-safe.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from serve.core import (
    REGRESSION_STATISTICS,
    Batch,
    Column,
    Finished,
    FittedContext,
    Launched,
    Matrix,
    ModelDefinition,
    QueryTable,
    Task,
)
from serve.core.errors import DeviceLost, EngineError, InvalidInput, InvalidModel, OutOfMemory, StartupError
from serve.core.row_buckets import bucket_of, row_buckets
from serve.engine import tabpfn_estimators
from serve.engine.checks.parity import SLACK_SHARE, canary_rows, compare_answers
from serve.engine.compiled import CompiledEnsemble, can_compile
from serve.engine.context_fit import ContextFit, Fit
from serve.engine.estimators.fit import EstimatorFit
from serve.engine.execution.faults import is_device_lost, is_out_of_memory
from serve.engine.execution.precision import resolve_precision
from serve.engine.memory.sizes import check_fits, count_parameters, predict_bytes
from serve.engine.preprocessing.limits import find_limits
from serve.engine.row_encoder import RowEncoder
from serve.settings import EngineSettings

_log = logging.getLogger(__name__)


class TabPFNContext:
    """A fitted context: its row encoder, the ensemble that answers encoded rows, and the correction by class priors.

    Raises:
        InvalidModel: the definition cannot be fitted, or its model does not fit into the device's memory.
        StartupError: the compiled answers differ from tabpfn's.
    """

    def __init__(self, definition: ModelDefinition, settings: EngineSettings, max_batch_rows: int) -> None:
        self.definition = definition
        self._settings = settings
        self._device = torch.device(settings.device)
        wants_compiled = settings.backend == "compiled"
        # a compiled ensemble is built from float32 caches and casts them itself
        tabpfn_precision = "float32" if wants_compiled else settings.chosen_precision
        num_parameters = count_parameters(Path(definition.checkpoint_path))
        self._precision = resolve_precision(
            settings.chosen_precision, settings.kv_cache_precision, self._device, num_parameters
        )
        self._fit = _choose_fit(definition, settings, tabpfn_precision)
        need = predict_bytes(
            self._fit.effective_definition, settings.device, tabpfn_precision, max_batch_rows,
            self._precision if wants_compiled else None,
        )  # fmt: skip
        check_fits(need, settings.device)
        fitted = self._fit.fit()
        self._rows = fitted.rows
        self._estimator = tabpfn_estimators.on_matrices(fitted.estimator)
        self.encoder = _limit(fitted.encoder, self._estimator)
        self.canary_slack: Matrix | None = None
        self._compiled = self._compile() if wants_compiled else None
        self.classes = tabpfn_estimators.class_names(fitted.estimator)
        self._class_weights = _class_weights(definition, self.classes)

    def _compile(self) -> CompiledEnsemble | None:
        """The compiled ensemble, checked on canary rows; tabpfn's KV caches are then dropped.

        None where an architecture has no compiled forward pass. Raises StartupError where the answers differ.
        """
        if not can_compile(self._estimator):
            return None
        compiled = CompiledEnsemble(self._estimator, self._device, self._precision, self._rows[:1])
        if compiled.uncompiled_steps:
            steps = ", ".join(compiled.uncompiled_steps)
            _log.warning("model %s: members with these steps are prepared by tabpfn: %s", self.definition.name, steps)
        canaries = canary_rows(self._rows)
        self.canary_slack = compiled.slack(canaries, SLACK_SHARE * self._settings.allowed_difference)
        # each row alone: in a batch the fingerprints that tabpfn computes may change (docs/decisions)
        alone = [tabpfn_estimators.predict_outputs(self._estimator, canaries[i : i + 1]) for i in range(len(canaries))]
        compare_answers(
            "by the compiled forward pass",
            compiled(canaries),
            "by tabpfn",
            np.concatenate(alone),
            self._settings.allowed_difference,
            is_probability=self.definition.context.task is Task.CLASSIFICATION,
            slack=self.canary_slack,
        )
        self._estimator.executor_.kv_caches = []
        return compiled

    @property
    def backend(self) -> str:
        """What computes the answers; see `FittedContext`."""
        if self._compiled is None:
            return "tabpfn"
        return "compiled" if self._compiled.is_recorded else "compiled, not recorded"

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

    def launch(self, rows: Matrix) -> Launched:
        """Begin the answers to encoded rows from the KV cache: float64 [rows, outputs], to be corrected."""
        if self._compiled is not None:
            return self._compiled.launch(rows)
        return Finished(tabpfn_estimators.predict_each_alone(self._estimator, rows))

    def answer_uncached(self, rows: Matrix) -> Matrix:
        """The same answers by tabpfn without a KV cache, corrected; see `Fit.predict_uncached`."""
        return self.correct(self._fit.predict_uncached(rows))

    def correct(self, outputs: Matrix) -> Matrix:
        """Answers corrected to the true class priors, where they are stated."""
        if self._class_weights is None:
            return outputs
        weighted = outputs * self._class_weights
        return np.asarray(weighted / weighted.sum(axis=1, keepdims=True), dtype=np.float64)


def _limit(encoder: RowEncoder, estimator: tabpfn_estimators.Estimator) -> RowEncoder:
    """The encoder, which then also refuses the numbers that the estimator's preprocessing cannot transform."""
    if getattr(estimator, "is_constant_target_", False):
        return encoder
    codings = encoder.codings or ()
    numbers = [position for position, coding in enumerate(codings) if coding.is_identity]
    return encoder.limited_to(find_limits(estimator.executor_.ensemble_members, numbers, len(codings)))


def _choose_fit(definition: ModelDefinition, settings: EngineSettings, precision: str) -> Fit:
    """Raises InvalidModel for a fitted estimator where the engine runs in the replica's own process."""
    if definition.estimator_path is None:
        return ContextFit(definition, settings, precision)
    if not settings.worker_process:
        raise InvalidModel(
            "its fitted estimator is a pickle, which only the engine's worker process opens; "
            "set engine.worker_process to true"
        )
    return EstimatorFit(definition, settings.device, precision)


@dataclass(frozen=True, slots=True)
class _Launched:
    """A padded batch on the device; its answer has `num_rows` rows."""

    engine: TabPFNEngine
    context: TabPFNContext
    launched: Launched
    num_rows: int

    def collect(self) -> Matrix:
        try:
            return self.context.correct(self.launched.collect())[: self.num_rows]
        except Exception as error:
            raise self.engine._describe_fault(error, self.num_rows) from error


class TabPFNEngine:
    """The Engine on one named device.

    Raises StartupError where the device is a GPU that torch does not see.
    """

    def __init__(self, settings: EngineSettings, max_batch_rows: int = 256) -> None:
        self._settings = settings
        self._max_batch_rows = max_batch_rows
        self._buckets = row_buckets(max_batch_rows, settings.device)
        self._is_cuda = settings.device.startswith("cuda")
        self._lost = False
        if self._is_cuda:
            _check_gpu(torch.device(settings.device))
            # In 16 bit torch prefers cuDNN's attention on Hopper and Blackwell. It builds a plan for every shape, and
            # it may raise an error where the other kernels would have answered.
            torch.backends.cuda.enable_cudnn_sdp(False)
        torch.set_num_threads(settings.num_threads)

    @property
    def device(self) -> str:
        return self._settings.device

    @property
    def lost(self) -> bool:
        return self._lost

    @property
    def max_in_flight(self) -> int:
        return 2 if self._is_cuda else 1

    @property
    def answer_fd(self) -> None:
        return None

    def fit(self, model: ModelDefinition) -> TabPFNContext:
        """Fit the model's context. Takes seconds to minutes.

        Raises:
            InvalidModel: the context or checkpoint cannot be fitted; names model and version.
            StartupError: the compiled answers differ from tabpfn's.
        """
        place = f"model {model.name!r} version {model.version!r}"
        self._enter_device()
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

    def launch(self, batch: Batch) -> Launched:
        """Begin the outputs float64 [rows, outputs]. It and `collect` raise OutOfMemory, DeviceLost, EngineError."""
        context, num_rows = _own(batch.context), len(batch.rows)
        self._enter_device()
        padding = bucket_of(num_rows, self._buckets) - num_rows
        rows = np.concatenate([batch.rows, np.repeat(batch.rows[:1], padding, axis=0)])
        try:
            return _Launched(self, context, context.launch(rows), num_rows)
        except Exception as error:
            raise self._describe_fault(error, num_rows) from error

    def predict(self, batch: Batch) -> Matrix:
        return self.launch(batch).collect()

    def reference(self, batch: Batch) -> Matrix:
        """The same answers by tabpfn without a KV cache; slow."""
        self._enter_device()
        return _own(batch.context).answer_uncached(batch.rows)

    def close(self) -> None:
        if self._is_cuda and not self._lost:
            torch.cuda.empty_cache()

    def _enter_device(self) -> None:
        """Make the device the current one of this thread. Streams and graphs belong to the current device."""
        if self._is_cuda:
            torch.cuda.set_device(self.device)

    def _describe_fault(self, error: Exception, num_rows: int) -> EngineError:
        """What the failure of a batch means; from a lost device on, the engine is `lost`."""
        if is_out_of_memory(error):
            return OutOfMemory(f"no memory for {bucket_of(num_rows, self._buckets)} rows on {self.device}: {error}")
        if is_device_lost(error):
            self._lost = True
            return DeviceLost(f"{self.device} is lost, so this process can compute no more: {error}")
        return EngineError(f"a batch of {num_rows} rows failed on {self.device}: {error}")


def _check_gpu(device: torch.device) -> None:
    """Raises StartupError where torch does not see this GPU."""
    if not torch.cuda.is_available():
        raise StartupError(
            f"engine.device is {device}, but torch {torch.__version__} sees no GPU; "
            "set it to cpu, or give this machine or container a GPU"
        )
    num_gpus = torch.cuda.device_count()
    if (device.index or 0) >= num_gpus:
        raise StartupError(
            f"engine.device is {device}, but the number of GPUs that torch sees is {num_gpus}, "
            "and the first of them is cuda:0"
        )


def _own(context: FittedContext) -> TabPFNContext:
    assert isinstance(context, TabPFNContext), "this is a bug: a context of another engine"
    return context


def _class_weights(definition: ModelDefinition, classes: Sequence[str]) -> Matrix | None:
    """For each class its true prior divided by its share of the context; None where no priors are stated."""
    priors = definition.context.class_priors
    if priors is None or not classes:
        return None
    if set(priors) != set(classes):
        raise InvalidModel(f"class_priors names {sorted(priors)}, but the context's classes are {sorted(classes)}")
    target = list(definition.context.target)
    return np.array([priors[label] / (target.count(label) / len(target)) for label in classes], dtype=np.float64)
