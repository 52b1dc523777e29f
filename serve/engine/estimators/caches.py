"""KV caches for fitted estimators: built where the fit kept none, cast to the server's precision where it kept them.

Nothing that the estimator holds is fitted anew. Its members, in their order and with their preprocessing, are those
that would have answered in the estimator itself.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tabpfn.inference import (
    InferenceEngineCachePreprocessing,
    InferenceEngineExplicitKVCache,
    InferenceEngineOnDemand,
)

from serve.engine.tabpfn_estimators import Estimator

SERVED = (InferenceEngineCachePreprocessing, InferenceEngineExplicitKVCache, InferenceEngineOnDemand)
"""tabpfn's executors of the fit modes "fit_preprocessors", "fit_with_cache" and "low_memory"."""


def has_caches(estimator: Estimator) -> bool:
    """Whether the estimator was fitted with the cache; its preprocessed context is then gone."""
    return isinstance(estimator.executor_, InferenceEngineExplicitKVCache)


def prepare(estimator: Estimator, device: str, precision: str) -> None:
    """Move an estimator to the device, and set it to compute as the server does, whatever its own settings were.

    Args:
        device: `cpu` or `cuda:N`.
        precision: "auto", or the name of a torch dtype.
    """
    # "auto" would choose by free memory, so another process could change an answer
    estimator.memory_saving_mode = estimator.executor_.save_peak_mem = False
    estimator.enable_torch_compile = estimator.executor_.enable_torch_compile = False
    estimator.n_preprocessing_jobs = estimator.ensemble_preprocessor_.n_preprocessing_jobs = 1
    estimator.executor_.ensemble_preprocessor.n_preprocessing_jobs = 1
    estimator.inference_precision = "auto" if precision == "auto" else getattr(torch, precision)
    if has_caches(estimator):
        estimator.keep_cache_on_device = estimator.executor_.keep_cache_on_device = True
    estimator.to(device)
    if has_caches(estimator):
        _cast_caches(estimator)


def _cast_caches(estimator: Estimator) -> None:
    executor = estimator.executor_
    forced = estimator.forced_inference_dtype_ or torch.float32
    # under autocast tabpfn takes keys and values of any of these formats
    kept = (torch.float32, torch.float16, torch.bfloat16) if estimator.use_autocast_ else (forced,)
    executor.kv_caches = [_cast(cache, kept, forced) for cache in executor.kv_caches]
    for member in executor.ensemble_members:
        if member.gpu_preprocessor is not None:
            member.gpu_preprocessor.fitted_cache = _cast(member.gpu_preprocessor.fitted_cache, (forced,), forced)


def build_caches(estimator: Estimator) -> None:
    """Turn an estimator that was fitted without the cache into one with it, on its device and in its precision."""
    executor = estimator.executor_
    if isinstance(executor, InferenceEngineOnDemand):
        members: Any = executor.ensemble_preprocessor
        members.keep_fitted_cache = True
        table, target = executor.X_train, executor.y_train
    else:
        members = _Members(executor.ensemble_preprocessor, executor.ensemble_members)
        rows, columns = executor.X_train_shape_before_preprocessing
        # tabpfn reads only their shape: the members hold the rows that they were fitted on
        table, target = np.empty((rows, columns), dtype=np.float32), np.empty(0)
    estimator.executor_ = InferenceEngineExplicitKVCache(
        table,
        target,
        ensemble_preprocessor=members,
        models=[cache.get_any() for cache in executor.model_caches],
        devices=estimator.devices_,
        dtype_byte_size=executor.dtype_byte_size,
        force_inference_dtype=estimator.forced_inference_dtype_,
        save_peak_mem=False,
        autocast=estimator.use_autocast_,
        task_type="multiclass" if hasattr(estimator, "classes_") else "regression",
        kv_cache_precision="auto",
    )
    estimator.fit_mode = "fit_with_cache"


class _Members:
    """Replaces tabpfn's `TabPFNEnsemblePreprocessor` where the members are fitted already."""

    def __init__(self, preprocessor: Any, members: list[Any]) -> None:
        self._preprocessor, self._members = preprocessor, members

    def fit_transform_ensemble_members(self, **_: Any) -> list[Any]:
        members = [copy.copy(member) for member in self._members]
        for member in members:
            if member.gpu_preprocessor is not None:
                # the forward pass that builds the cache fits it, and the fit is kept for later rows
                member.gpu_preprocessor = copy.copy(member.gpu_preprocessor)
                member.gpu_preprocessor.fitted_cache = [None] * len(member.gpu_preprocessor.steps)
                member.gpu_preprocessor.keep_fitted_cache = True
        return members

    def any_estimator_uses_gpu_svd(self) -> bool:
        return bool(self._preprocessor.any_estimator_uses_gpu_svd())


def _cast(value: Any, kept: Sequence[torch.dtype], target: torch.dtype) -> Any:
    """The same structure with its floating-point tensors cast to `target`, unless their dtype is in `kept`.

    So caches of another precision than the server's can be multiplied with its tensors. Quantised caches are integers
    or 8-bit floats, which tabpfn dequantises when it uses them; they stay as they are.
    """
    if isinstance(value, torch.Tensor):
        is_foreign = value.is_floating_point() and value.itemsize > 1 and value.dtype not in kept
        return value.to(target) if is_foreign else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: _cast(item, kept, target) for name, item in fields.items()})
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, kept, target) for item in value)
    if isinstance(value, dict):
        return {key: _cast(item, kept, target) for key, item in value.items()}
    return value


def draws_column_embeddings(network: Any) -> bool:
    """Whether the network marks columns by random numbers that it draws on its device (v2, small ones of v2.5, v2.6).

    Another kind of device draws other numbers, so a KV cache from there would answer wrongly without an error.
    """
    embeddings = getattr(network, "feature_positional_embedding_embeddings", None)
    if embeddings is None:
        return False
    stored = getattr(network, "pre_generated_column_embeddings", None)
    return stored is None or stored.shape[1] != embeddings.in_features
