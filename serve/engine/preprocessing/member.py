"""One ensemble member: translated into columns of a graph, or prepared by tabpfn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tabpfn.preprocessing.datamodel import FeatureModality

from serve.core import Matrix
from serve.engine.preprocessing.graph import Array, Graph
from serve.engine.preprocessing.steps import TorchColumn, translate_step, translate_torch_step
from serve.engine.preprocessing.transformers import Untranslatable


@dataclass
class Graphs:
    """The graphs of all members: scikit-learn's steps in float64, then torch's in float32.

    Attributes:
        double: the float64 steps.
        single: the float32 steps.
        handed: the columns that pass from `double` to `single`: (column in `double`, feature whose infinities are put
            back into it, or -1) to the number of the input in `single`.
    """

    double: Graph
    single: Graph
    handed: dict[tuple[int, int], int]

    @staticmethod
    def empty() -> Graphs:
        return Graphs(Graph(np.float64), Graph(np.float32), {})


def translate_member(member: Any, graphs: Graphs) -> list[TorchColumn]:
    """The member's final columns in `graphs.single`. Raises Untranslatable."""
    if member.feature_indices is None:
        features = list(range(member.cpu_preprocessor.initial_feature_schema_.num_columns))
    else:
        features = [int(feature) for feature in member.feature_indices]
    columns = [graphs.double.input(feature) for feature in features]
    for step, modalities in member.cpu_preprocessor.steps:
        columns = translate_step(step, modalities, columns, graphs.double)
    handed = zip(columns, _origins(member, features, len(columns)), strict=True)
    numbers = [graphs.handed.setdefault(pair, len(graphs.handed)) for pair in handed]
    final = [
        TorchColumn(graphs.single.input(number), number, feature.modality == FeatureModality.NUMERICAL)
        for number, feature in zip(numbers, member.feature_schema.features, strict=True)
    ]
    if member.gpu_preprocessor is None:
        return final
    fitted_steps = zip(member.gpu_preprocessor.steps, member.gpu_preprocessor.fitted_cache, strict=True)
    for (step, modalities), fitted in fitted_steps:
        # a soft clip of no columns was never fitted
        final = translate_torch_step(step, modalities, fitted or {}, final, graphs.single)
    return final


def _origins(member: Any, features: list[int], num_columns: int) -> list[int]:
    """For each column after the float64 steps, the feature whose infinities tabpfn puts back into it, or -1.

    tabpfn finds the feature by name: the column's own, or its ancestor's (pipeline_interface.py `_restore_inf_masks`).
    """
    before = [feature.name for feature in member.cpu_preprocessor.initial_feature_schema_.features]
    after = member.cpu_preprocessor.final_feature_schema_.features
    names = [feature.name for feature in after]
    same = names == [feature.name for feature in member.feature_schema.features]
    if not same or len(names) != num_columns or len(set(names)) != len(names) or len(set(before)) != len(before):
        raise Untranslatable(member.cpu_preprocessor)
    number: dict[Any, int] = dict(zip(before, features, strict=True))
    return [number.get(feature.name, number.get(feature.ancestor, -1)) for feature in after]


class TabPFNMember:
    """A member that tabpfn's own transforms prepare, on the host.

    A row's fingerprint hashes values whose last bits may depend on the number of rows. A member that adds fingerprints
    therefore receives its rows one at a time.
    """

    def __init__(self, member: Any) -> None:
        self._member = member
        self._one_by_one = bool(member.config.add_fingerprint_feature)

    def __call__(self, rows: Matrix) -> Array:
        """float32 [rows, width]."""
        parts = np.split(rows, len(rows)) if self._one_by_one and len(rows) else [rows]
        return np.concatenate([self._prepare(part) for part in parts])

    def _prepare(self, rows: Matrix) -> Array:
        # as tabpfn/inference.py `InferenceEngineExplicitKVCache._call_model` does
        prepared = torch.as_tensor(self._member.transform_X_test(rows), dtype=torch.float32).unsqueeze(1)
        if self._member.gpu_preprocessor is not None:
            prepared = self._member.gpu_preprocessor(
                prepared, feature_schema=self._member.feature_schema, num_train_rows=0, use_fitted_cache=True
            ).x
        return np.asarray(prepared.squeeze(1).numpy())

    def measure_width(self) -> int:
        """Columns of the prepared rows, found by preparing a row: a step of unknown kind may add columns."""
        indices = self._member.feature_indices
        schema = self._member.cpu_preprocessor.initial_feature_schema_
        num_features = schema.num_columns if indices is None else int(np.max(indices)) + 1
        return int(self(np.zeros((1, num_features))).shape[1])
