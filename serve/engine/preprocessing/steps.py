"""A member's fitted tabpfn steps as columns of a graph: first the steps in float64, then torch's in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from tabpfn.preprocessing.datamodel import FeatureModality
from tabpfn.preprocessing.steps import (
    AddFingerprintFeaturesStep,
    AddSVDFeaturesStep,
    EncodeCategoricalFeaturesStep,
    NanHandlingPolynomialFeaturesStep,
    RemoveConstantFeaturesStep,
    ReshapeFeatureDistributionsStep,
    ShuffleFeaturesStep,
)
from tabpfn.preprocessing.torch.steps import (
    TorchAddFingerprintFeaturesStep,
    TorchAddSVDFeaturesStep,
    TorchSelectiveQuantileTransformerStep,
    TorchSelectiveSquashingScalerStep,
    TorchShuffleFeaturesStep,
    TorchSoftClipOutliersStep,
)

from serve.engine.preprocessing.graph import Array, Graph
from serve.engine.preprocessing.joins import Fingerprint, TorchProjection
from serve.engine.preprocessing.operations import Product, SafeScale, SoftClip, Squash
from serve.engine.preprocessing.tables import TorchQuantile
from serve.engine.preprocessing.transformers import (
    Columns,
    Translator,
    Untranslatable,
    standardize,
    translate_column_transformer,
    translate_transformer,
)


@dataclass(frozen=True)
class TorchColumn:
    """A column of the float32 part.

    Attributes:
        column: number of the column in the graph.
        origin: the input whose infinities are put back into the column at the end; -1 for none.
        is_numerical: whether the column is numerical in tabpfn's schema.
    """

    column: int
    origin: int
    is_numerical: bool


def translate_step(step: Any, modalities: Any, columns: Columns, graph: Graph) -> list[int]:
    """The columns after one step of a member's `cpu_preprocessor`. Raises Untranslatable."""
    translator = _STEPS.get(type(step))
    # tabpfn 9.2's pipelines give every step all columns
    if translator is None or modalities:
        raise Untranslatable(step)
    return translator(step, columns, graph)


def _polynomial(step: Any, columns: Columns, graph: Graph) -> list[int]:
    if not columns:
        return []
    scaled = standardize(step.standardizer, columns, graph)
    factors = zip(step.poly_factor_1_idx, step.poly_factor_2_idx, strict=True)
    return scaled + [graph.add(Product, (scaled[int(first)], scaled[int(second)])) for first, second in factors]


def _remove_constant(step: Any, columns: Columns, _graph: Graph) -> list[int]:
    return [column for column, keep in zip(columns, step.sel_, strict=True) if keep]


def _reshape(step: Any, columns: Columns, graph: Graph) -> list[int]:
    if step.data_is_unchanged_:
        return list(columns)
    if step.column_order_ is not None:
        return [columns[position] for position in step.column_order_]
    return translate_transformer(step.transformer_, columns, graph)


def _encode(step: Any, columns: Columns, graph: Graph) -> list[int]:
    if step.categorical_transformer_ is None:
        return list(columns)
    shuffles = step.random_mappings_ if step.categorical_transform_name.endswith("_shuffled") else {}
    return translate_column_transformer(step.categorical_transformer_, columns, graph, shuffles)


def _svd(step: Any, columns: Columns, graph: Graph) -> list[int]:
    return list(columns) if step.is_no_op else [*columns, *translate_transformer(step.transformer_, columns, graph)]


def _fingerprint(step: Any, columns: Columns, graph: Graph) -> list[int]:
    return [*columns, *graph.join(Fingerprint, columns, 1, np.array(step.n_cells_))]


def _shuffle(step: Any, columns: Columns, _graph: Graph) -> list[int]:
    return [columns[int(position)] for position in step.index_permutation_]


_STEPS: dict[type, Translator] = {
    NanHandlingPolynomialFeaturesStep: _polynomial,
    RemoveConstantFeaturesStep: _remove_constant,
    ReshapeFeatureDistributionsStep: _reshape,
    EncodeCategoricalFeaturesStep: _encode,
    AddSVDFeaturesStep: _svd,
    AddFingerprintFeaturesStep: _fingerprint,
    ShuffleFeaturesStep: _shuffle,
}


def translate_torch_step(
    step: Any, modalities: Any, fitted: dict[str, Any], columns: Sequence[TorchColumn], graph: Graph
) -> list[TorchColumn]:
    """The columns after one step of a member's `gpu_preprocessor`, with its `fitted_cache`. Raises Untranslatable."""
    translator = _TORCH_STEPS.get(type(step))
    if translator is None or (modalities is None) == (type(step) is TorchSoftClipOutliersStep):
        raise Untranslatable(step)
    if modalities is not None and set(modalities) != {FeatureModality.NUMERICAL}:
        raise Untranslatable(step)
    return translator(step, {name: _on_host(value) for name, value in fitted.items()}, columns, graph)


def _on_host(value: Any) -> Array:
    """A fitted statistic on the host. Some have a batch axis of length 1: [1, columns], [quantiles, 1, columns]."""
    return np.asarray(value.detach().cpu().numpy())


def _replaced(columns: Sequence[TorchColumn], made: dict[int, int]) -> list[TorchColumn]:
    """The same columns with new column numbers at the given positions."""
    return [
        TorchColumn(made.get(position, old.column), old.origin, old.is_numerical)
        for position, old in enumerate(columns)
    ]


def _added(columns: Sequence[TorchColumn], made: Sequence[int]) -> list[TorchColumn]:
    return [*columns, *(TorchColumn(column, -1, True) for column in made)]


def _soft_clip(
    _step: Any,
    fitted: dict[str, Array],
    columns: Sequence[TorchColumn],
    graph: Graph,
) -> list[TorchColumn]:
    targets = [position for position, column in enumerate(columns) if column.is_numerical]
    if not targets:
        return list(columns)
    bounds = zip(targets, fitted["lower"][0], fitted["upper"][0], strict=True)
    return _replaced(columns, {p: graph.add(SoftClip, columns[p].column, low, high) for p, low, high in bounds})


def _torch_quantile(
    step: Any, fitted: dict[str, Array], columns: Sequence[TorchColumn], graph: Graph
) -> list[TorchColumn]:
    knots, references = fitted["quantiles"][:, 0], fitted["references"]
    if len(references) < 2 or not np.isfinite(knots).all():
        raise Untranslatable(step)
    ratio = step._qt.extrapolate_ratio
    settings = references, np.nan if ratio is None else ratio
    targets = zip(step._target_column_indices, knots.T, strict=True)
    return _replaced(columns, {p: graph.add(TorchQuantile, columns[p].column, own, *settings) for p, own in targets})


def _torch_squash(
    step: Any, fitted: dict[str, Array], columns: Sequence[TorchColumn], graph: Graph
) -> list[TorchColumn]:
    statistics = fitted["center"][0], fitted["scale"][0], np.ones_like(fitted["scale"][0]), fitted["zero_mask"][0]
    limit = step._scaler.max_absolute_value
    targets = zip(step._target_column_indices, *statistics, strict=True)
    return _replaced(columns, {p: graph.add(Squash, columns[p].column, *own, limit) for p, *own in targets})


def _torch_svd(
    _step: Any,
    fitted: dict[str, Array],
    columns: Sequence[TorchColumn],
    graph: Graph,
) -> list[TorchColumn]:
    if "is_no_op" in fitted:
        return list(columns)
    statistics = zip(columns, fitted["scaler_std"], fitted["scaler_mean"], strict=True)
    scaled = [graph.add(SafeScale, column.column, scale, mean) for column, scale, mean in statistics]
    components = fitted["svd_components"]
    return _added(columns, graph.join(TorchProjection, scaled, len(components), components))


def _torch_fingerprint(
    _step: Any,
    fitted: dict[str, Array],
    columns: Sequence[TorchColumn],
    graph: Graph,
) -> list[TorchColumn]:
    return _added(columns, graph.join(Fingerprint, [c.column for c in columns], 1, fitted["n_cells"]))


def _torch_shuffle(
    _step: Any,
    fitted: dict[str, Array],
    columns: Sequence[TorchColumn],
    _graph: Graph,
) -> list[TorchColumn]:
    return [columns[int(position)] for position in fitted["permutation"]]


TorchTranslator: TypeAlias = Callable[[Any, dict[str, Array], Sequence[TorchColumn], Graph], list[TorchColumn]]

_TORCH_STEPS: dict[type, TorchTranslator] = {
    TorchAddFingerprintFeaturesStep: _torch_fingerprint,
    TorchAddSVDFeaturesStep: _torch_svd,
    TorchSelectiveQuantileTransformerStep: _torch_quantile,
    TorchSelectiveSquashingScalerStep: _torch_squash,
    TorchShuffleFeaturesStep: _torch_shuffle,
    TorchSoftClipOutliersStep: _soft_clip,
}
