"""Fits a tabpfn estimator with KV caches from a file, where the file holds the caches of this very fit.

Such a fit is tabpfn's own with one difference: the network does not run. While the estimator fits, `ForwardGuard`
replaces the network's `forward`, on that one module alone. It digests the network's inputs. Where the stored caches
were built from the same inputs, it returns a placeholder in place of minutes of work. So members, their order and their
preprocessing are tabpfn's own, and caches of another fit are detected.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from serve.core import ModelDefinition
from serve.core.files import sweep
from serve.engine import kv_file
from serve.engine.kv_file import Caches, StaleCaches
from serve.engine.tabpfn_estimators import Estimator, fit_estimator, unfitted_estimator

_log = logging.getLogger(__name__)


def build_with_file(
    definition: ModelDefinition, frame: pd.DataFrame, device: str, precision: str, path: Path
) -> Estimator:
    """As `build_estimator(..., "fit_with_cache", ...)`, with KV caches from the file at `path` if they are of this fit.

    Otherwise the caches are built and the file is written anew, and one line of the log says why. A file that cannot
    be written does not stop the start. What a killed start left in the folder is removed first.
    """
    for left in sweep(path.parent):
        _log.info("removed %s, which a killed process left", left)
    estimator = unfitted_estimator(definition, "fit_with_cache", device, precision)
    fingerprint = kv_file.fingerprint_of(definition, estimator.get_params(), device)
    stored = kv_file.load(path, fingerprint, device)
    if stored is not None:
        try:
            return _restore(estimator, definition, frame, stored)
        except StaleCaches as reason:
            _log.warning("KV cache file %s is not used: %s", path, reason)
        estimator = unfitted_estimator(definition, "fit_with_cache", device, precision)
        stored = None  # frees its memory before new caches are built
    guard = ForwardGuard(estimator, None)
    try:
        fit_estimator(estimator, definition, frame)
    finally:
        guard.leave()
    if guard.inputs:
        built = Caches(estimator.executor_.kv_caches, estimator.executor_.cache_groups, guard.inputs)
        try:
            kv_file.save(path, built, fingerprint)
        except Exception as error:  # the caches are there, so whatever ails the file, the model can serve
            _log.warning(
                "KV cache file %s is not written, so the next start builds the caches again: %s: %s",
                path, type(error).__name__, error,
            )  # fmt: skip
    return estimator


def _restore(estimator: Estimator, definition: ModelDefinition, frame: pd.DataFrame, stored: Caches) -> Estimator:
    """Fit with the stored caches. Raises StaleCaches if another fit built them."""
    guard = ForwardGuard(estimator, stored.inputs)
    try:
        fit_estimator(estimator, definition, frame)
    finally:
        guard.leave()
    executor = getattr(estimator, "executor_", None)
    if guard.inputs != stored.inputs or executor is None or executor.cache_groups != stored.groups:
        raise StaleCaches("this fit has other members")
    if len(stored.caches) != len(stored.groups):
        raise StaleCaches(f"it holds {len(stored.caches)} caches for {len(stored.groups)} groups of members")
    executor.kv_caches = list(stored.caches)
    return estimator


class _NoCache:
    """Placeholder for a built KV cache until the stored one replaces it (`tabpfn.inference._build_cache`)."""

    @classmethod
    def concatenate(cls, _parts: Sequence[_NoCache]) -> _NoCache:
        return cls()


class ForwardGuard:
    """Digests the inputs of an estimator's networks while it fits; with `expected` digests, no network runs.

    Attributes:
        inputs: one digest for each forward pass that built caches, in order.
    """

    def __init__(self, estimator: Estimator, expected: Sequence[str] | None) -> None:
        self.inputs: list[str] = []
        self._estimator, self._expected = estimator, expected
        self._networks: list[Any] = []
        load_networks = estimator._initialize_model_variables

        def load_and_guard() -> Any:
            loaded = load_networks()
            for network in estimator.models_:
                self._guard(network)
            return loaded

        # set on the instance: the only hook between the loading of the networks and their first use
        estimator._initialize_model_variables = load_and_guard

    def leave(self) -> None:
        """Restore the methods of the networks and the estimator."""
        for network in self._networks:
            network.__dict__.pop("forward", None)
        self._networks = []
        self._estimator.__dict__.pop("_initialize_model_variables", None)

    def _guard(self, network: Any) -> None:
        forward = network.forward

        @functools.wraps(forward)  # tabpfn reads the signature
        def guarded(x: torch.Tensor, y: torch.Tensor, **options: Any) -> Any:
            if not options.get("return_kv_cache"):
                return forward(x, y, **options)
            self.inputs.append(kv_file.digest_tensors(x, y))
            if self._expected is None:
                return forward(x, y, **options)
            if list(self._expected[: len(self.inputs)]) != self.inputs:
                raise StaleCaches("its caches were built from other preprocessed rows than this fit's")
            return None, _NoCache()

        network.forward = guarded
        self._networks.append(network)
