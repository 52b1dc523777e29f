"""The only door to tabpfn's estimators: builds them without internet, with KV caches from a file where it has them, and
takes their fitted cleaning step apart.

A request must never wait for a download, a browser or a licence dialogue, so the internet is shut out before tabpfn is
imported, and a checkpoint is always a file by its absolute path.

A fit from a file is the library's own fit with one difference: the network is not run. While the estimator fits,
`ForwardGuard` stands in front of its network's `forward`, on that one module alone. It digests the network's inputs
and, where that is what the stored caches were built from, answers with a placeholder in place of minutes of work. So
members, their order and their preprocessing are the library's own, and caches of another fit are found out.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

os.environ["TABPFN_NO_BROWSER"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import torch
from tabpfn import TabPFNClassifier, TabPFNRegressor
from tabpfn.preprocessing.clean import clean_data_transform
from tabpfn.preprocessing.datamodel import FeatureModality
from tabpfn.validation import ensure_compatible_predict_input_sklearn

from serve.core import QUANTILES, ColumnKind, Matrix, ModelDefinition, Task
from serve.engine import kv_file
from serve.engine.kv_file import Caches, StaleCaches
from serve.engine.row_encoder import Coding, RawCell, feature_names

_log = logging.getLogger(__name__)

Estimator: TypeAlias = Any
"""`TabPFNClassifier | TabPFNRegressor`; the attributes used here are not part of their typed surface."""
FitMode = Literal["fit_with_cache", "fit_preprocessors"]

UNSEEN = "\x00 a category that no context holds"


def build_estimator(
    definition: ModelDefinition, frame: pd.DataFrame, fit_mode: FitMode, device: str, precision: str
) -> Estimator:
    """A fitted estimator of the library on the context's frame (`context_frame`)."""
    return _fit(_unfitted(definition, fit_mode, device, precision), definition, frame)


def build_with_file(
    definition: ModelDefinition, frame: pd.DataFrame, device: str, precision: str, path: Path
) -> Estimator:
    """As `build_estimator(..., "fit_with_cache", ...)`, its KV caches from the file at `path` if they are this fit's.

    Where they are not, they are built and the file is written anew; one line of the log says why. A file that cannot
    be written is no reason not to start.
    """
    estimator = _unfitted(definition, "fit_with_cache", device, precision)
    fingerprint = kv_file.fingerprint_of(definition, estimator.get_params(), device)
    stored = kv_file.load(path, fingerprint, device)
    if stored is not None:
        try:
            return _restore(estimator, definition, frame, stored)
        except StaleCaches as reason:
            _log.warning("KV cache file %s is not used: %s", path, reason)
        estimator = _unfitted(definition, "fit_with_cache", device, precision)
        stored = None  # its memory goes before the next is built
    doorman = ForwardGuard(estimator, None)
    try:
        _fit(estimator, definition, frame)
    finally:
        doorman.leave()
    if doorman.inputs:
        built = Caches(estimator.executor_.kv_caches, estimator.executor_.cache_groups, doorman.inputs)
        try:
            kv_file.save(path, built, fingerprint)
        except (OSError, TypeError) as error:
            _log.warning("KV cache file %s is not written: %s", path, error)
    return estimator


def _unfitted(definition: ModelDefinition, fit_mode: FitMode, device: str, precision: str) -> Estimator:
    options, context = definition.options, definition.context
    names = feature_names(context.columns)
    categorical = [c.name for c in context.columns if c.kind in (ColumnKind.CATEGORY, ColumnKind.TEXT)]
    settings: dict[str, Any] = {
        "model_path": definition.checkpoint_path,
        "device": device,
        "fit_mode": fit_mode,
        "n_estimators": options.num_members,
        "random_state": options.random_state,
        "categorical_features_indices": [names.index(name) for name in categorical],
        # "auto" would choose by free memory, and so let a neighbour change an answer
        "memory_saving_mode": False,
        "inference_precision": "auto" if precision == "auto" else getattr(torch, precision),
        "kv_cache_precision": "auto",
    }
    if options.softmax_temperature is not None:
        settings["softmax_temperature"] = options.softmax_temperature
    return (TabPFNClassifier if context.task is Task.CLASSIFICATION else TabPFNRegressor)(**settings)


def _fit(estimator: Estimator, definition: ModelDefinition, frame: pd.DataFrame) -> Estimator:
    with warnings.catch_warnings():
        # the operator chose the device by name, and knows the size of the context
        warnings.filterwarnings("ignore", message="Running on CPU with more than")
        return estimator.fit(frame, np.asarray(definition.context.target))


def _restore(estimator: Estimator, definition: ModelDefinition, frame: pd.DataFrame, stored: Caches) -> Estimator:
    """Fit with given caches. Raises StaleCaches if they were not built by this very fit."""
    doorman = ForwardGuard(estimator, stored.inputs)
    try:
        _fit(estimator, definition, frame)
    finally:
        doorman.leave()
    executor = getattr(estimator, "executor_", None)
    if doorman.inputs != stored.inputs or executor is None or executor.cache_groups != stored.groups:
        raise StaleCaches("this fit has other members")
    executor.kv_caches = list(stored.caches)
    return estimator


class _NoCache:
    """Stands where a built KV cache would, until the stored one takes its place (`tabpfn.inference._build_cache`)."""

    @classmethod
    def concatenate(cls, _parts: Sequence[_NoCache]) -> _NoCache:
        return cls()


class ForwardGuard:
    """Digests what the networks are given while an estimator fits; with `expected` digests, lets nothing through.

    Attributes:
        inputs: one digest per forward that built caches, in order.
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

        # on the instance: the one moment between the networks' loading and their first use
        estimator._initialize_model_variables = load_and_guard

    def leave(self) -> None:
        """Give networks and estimator their own methods back."""
        for network in self._networks:
            network.__dict__.pop("forward", None)
        self._networks = []
        self._estimator.__dict__.pop("_initialize_model_variables", None)

    def _guard(self, network: Any) -> None:
        forward = network.forward

        @functools.wraps(forward)  # the library reads the signature
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


def context_frame(definition: ModelDefinition, raw: Sequence[Sequence[RawCell]]) -> pd.DataFrame:
    """The raw cells, one list per column, as tabpfn takes them: numbers as float64, categories as objects."""
    columns = {}
    for position, name in enumerate(feature_names(definition.context.columns)):
        cells = raw[position]
        is_number = all(isinstance(cell, float) for cell in cells)
        columns[name] = pd.Series(cells, dtype="float64" if is_number else "object")
    return pd.DataFrame(columns)


def clean(estimator: Estimator, frame: pd.DataFrame) -> Matrix:
    """What the library's own cleaning step makes of a frame at predict time; float64 [rows, features]."""
    cleaned = clean_data_transform(
        ensure_compatible_predict_input_sklearn(frame, estimator),
        cat_indices=estimator.inferred_feature_schema_.indices_for(FeatureModality.CATEGORICAL),
        ord_encoder=estimator.ordinal_encoder_,
    )
    return np.asarray(cleaned, dtype=np.float64)


def learn_codings(estimator: Estimator, frame: pd.DataFrame) -> list[Coding]:
    """Each column's coding, read off the fitted cleaning step by showing it every value that the context holds.

    Asking the library is safer than repeating its rules (which numbers it takes for categories, where a missing value
    sorts, what an unknown one becomes): whatever they are in this release, they are the ones that were fitted.
    """
    constants = getattr(estimator.ordinal_encoder_, "constant_values_", None) or {}
    encoded = set(estimator.ordinal_encoder_.selected_columns())
    codings = []
    for position, name in enumerate(frame.columns):
        if position in constants:
            codings.append(Coding(constant=float(clean(estimator, frame[:1])[0, position])))
        elif encoded & {position, name}:
            codings.append(_learn_coding(estimator, frame, position))
        else:
            codings.append(Coding())
    return codings


def _learn_coding(estimator: Estimator, frame: pd.DataFrame, position: int) -> Coding:
    column = frame.iloc[:, position]
    values = list(column.dropna().unique())
    is_number = column.dtype == np.float64
    # an unseen number must not be one by chance; no float is beyond the largest seen, plus one
    unseen = max(values, default=0.0) + 1.0 if is_number else UNSEEN
    probe = frame.iloc[np.zeros(len(values) + 2, int)].reset_index(drop=True)
    probe.isetitem(position, pd.Series([*values, unseen, math.nan if is_number else None], dtype=column.dtype))
    codes = [float(code) for code in clean(estimator, probe)[:, position]]
    return Coding(codes=dict(zip(values, codes, strict=False)), unknown=codes[-2], missing=codes[-1])


def on_matrices(estimator: Estimator) -> Estimator:
    """The same fitted estimator, for rows that are clean already: a view that shares all but the cleaning step."""
    view = copy.copy(estimator)
    view.ordinal_encoder_ = None
    if hasattr(view, "feature_names_in_"):
        del view.feature_names_in_
    return view


def class_names(estimator: Estimator) -> tuple[str, ...]:
    """A classifier's classes as the answers name them, in the order of its outputs; none of a regressor.

    Whole numbers come without decimals and true as 1, as `store/folder.py` reads the labels of a context.
    """
    labels = [label.item() if isinstance(label, np.generic) else label for label in getattr(estimator, "classes_", ())]
    is_whole = [isinstance(label, bool) or (isinstance(label, float) and label.is_integer()) for label in labels]
    return tuple(str(int(label)) if whole else str(label) for label, whole in zip(labels, is_whole, strict=True))


def predict_outputs(estimator: Estimator, rows: Matrix) -> Matrix:
    """Probabilities [rows, classes], or the regressor's `REGRESSION_STATISTICS` [rows, statistics]; float64."""
    if isinstance(estimator, TabPFNClassifier):
        return np.asarray(estimator.predict_proba(rows), dtype=np.float64)
    answer = estimator.predict(rows, output_type="main", quantiles=list(QUANTILES))
    return np.stack([answer["mean"], answer["median"], *answer["quantiles"]], axis=1).astype(np.float64)
