"""Fitted scikit-learn transformers as columns of a graph.

A translator takes the fitted transformer, its input columns and the graph, and returns its output columns. A
transformer without an exact counterpart raises `Untranslatable`; tabpfn's own code then prepares the member. Types are
compared exactly, because a subclass may do anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import TruncatedSVD
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)
from tabpfn.preprocessing.steps.adaptive_quantile_transformer import AdaptiveQuantileTransformer
from tabpfn.preprocessing.steps.preprocessing_helpers import EfficientColumnTransformer
from tabpfn.preprocessing.steps.safe_power_transformer import SafePowerTransformer
from tabpfn.preprocessing.steps.squashing_scaler_transformer import SquashingScaler
from tabpfn.preprocessing.steps.utils import _NoInverseImputer, _replace_inf_with_nan, is_identity_transformer

from serve.engine.preprocessing.graph import Graph
from serve.engine.preprocessing.joins import Projection
from serve.engine.preprocessing.operations import Finite, Indicator, Power, Scale, Squash, Standardize
from serve.engine.preprocessing.tables import Lookup, Quantile

Columns: TypeAlias = Sequence[int]
Translator: TypeAlias = Callable[[Any, Columns, Graph], list[int]]


class Untranslatable(Exception):
    """The text is the name of the class that has no translation here."""

    def __init__(self, part: Any) -> None:
        super().__init__(type(part).__name__)


def translate_transformer(transformer: Any, columns: Columns, graph: Graph) -> list[int]:
    """The output columns of a fitted transformer. Raises Untranslatable."""
    if is_identity_transformer(transformer):
        return list(columns)
    translator = _TRANSLATORS.get(type(transformer))
    if translator is None:
        raise Untranslatable(transformer)
    return translator(transformer, columns, graph)


def standardize(scaler: Any, columns: Columns, graph: Graph) -> list[int]:
    """The columns of a StandardScaler to unit variance, with or without mean. Raises Untranslatable."""
    if not scaler.with_std:
        raise Untranslatable(scaler)
    if not scaler.with_mean:
        return [graph.add(Scale, c, s) for c, s in zip(columns, scaler.scale_, strict=True)]
    fitted = zip(columns, scaler.mean_, scaler.scale_, strict=True)
    return [graph.add(Standardize, column, mean, scale) for column, mean, scale in fitted]


def _robust(scaler: Any, columns: Columns, graph: Graph) -> list[int]:
    if not (scaler.with_centering and scaler.with_scaling):
        raise Untranslatable(scaler)
    fitted = zip(columns, scaler.center_, scaler.scale_, strict=True)
    return [graph.add(Standardize, column, center, scale) for column, center, scale in fitted]


def _pipeline(pipeline: Any, columns: Columns, graph: Graph) -> list[int]:
    """One step after another; the pair "infinity to NaN" and "NaN to mean" is one operation."""
    made, parts = list(columns), [part for _, part in pipeline.steps]
    while parts:
        part = parts.pop(0)
        if type(part) is FunctionTransformer and part.func is _replace_inf_with_nan:
            imputer = parts.pop(0) if parts else part
            if type(imputer) is not _NoInverseImputer or not np.isnan(imputer.missing_values):
                raise Untranslatable(imputer)
            made = [graph.add(Finite, c, mean) for c, mean in zip(made, imputer.statistics_, strict=True)]
        else:
            made = translate_transformer(part, made, graph)
    return made


def _quantile(transformer: Any, columns: Columns, graph: Graph) -> list[int]:
    knots, references = transformer.quantiles_, transformer.references_
    unusual = transformer.output_distribution != "uniform" or transformer.extrapolate_ratio is not None
    # slopes must be finite; they are, unless knots are subnormally close or their range overflows
    with np.errstate(all="ignore"):
        widths = np.diff(knots, axis=0)
        steep = np.isinf(np.diff(references)[:, None] / np.where(widths == 0, 1, widths))
    unusual |= len(references) < 2
    if unusual or not np.isfinite(knots).all() or not np.isfinite(widths).all() or steep.any():
        raise Untranslatable(transformer)
    return [graph.add(Quantile, c, own, references) for c, own in zip(columns, knots.T, strict=True)]


def _power(transformer: Any, columns: Columns, graph: Graph) -> list[int]:
    if transformer.method != "yeo-johnson":
        raise Untranslatable(transformer)
    made = [graph.add(Power, c, exponent) for c, exponent in zip(columns, transformer.lambdas_, strict=True)]
    return standardize(transformer._scaler, made, graph) if transformer.standardize else made


def _squash(scaler: Any, columns: Columns, graph: Graph) -> list[int]:
    num_columns = len(columns)
    center, divisor, factor = np.zeros(num_columns), np.ones(num_columns), np.ones(num_columns)
    center[scaler.robust_cols_], divisor[scaler.robust_cols_] = scaler.robust_center_, scaler.robust_scale_
    center[scaler.minmax_cols_], factor[scaler.minmax_cols_] = scaler.minmax_center_, scaler.minmax_scale_
    fitted = zip(columns, center, divisor, factor, scaler.zero_cols_, strict=True)
    return [graph.add(Squash, c, *statistics, scaler.max_absolute_value) for c, *statistics in fitted]


def translate_ordinal(
    encoder: Any, columns: Columns, graph: Graph, shuffles: dict[int, Any] | None = None
) -> list[int]:
    """The columns of an OrdinalEncoder: codes of known categories, NaN for unknown and missing ones.

    Args:
        shuffles: tabpfn's new code for each code, for columns that have one, by position.

    Raises:
        Untranslatable: the encoder has options that tabpfn does not use.
    """
    unusual = encoder.handle_unknown != "use_encoded_value" or not np.isnan(encoder.unknown_value)
    if unusual or not np.isnan(encoder.encoded_missing_value) or encoder._infrequent_enabled:
        raise Untranslatable(encoder)
    made = []
    for position, (column, categories) in enumerate(zip(columns, encoder.categories_, strict=True)):
        shuffle = (shuffles or {}).get(position, np.arange(len(categories)))
        known = categories[~np.isnan(categories)]
        # padded to a power of two, so that most columns share a call despite different numbers of categories
        keys = np.full(max(32, 2 ** len(known).bit_length()), np.inf)
        codes = np.full(len(keys), np.nan)
        keys[: len(known)], codes[: len(known)] = known, shuffle[: len(known)]
        made.append(graph.add(Lookup, column, keys, codes))
    return made


def _one_hot(encoder: Any, columns: Columns, graph: Graph) -> list[int]:
    if encoder.handle_unknown != "ignore" or encoder._infrequent_enabled or encoder.sparse_output:
        raise Untranslatable(encoder)
    dropped = [None] * len(columns) if encoder.drop_idx_ is None else encoder.drop_idx_
    return [
        graph.add(Indicator, column, category)
        for column, categories, drop in zip(columns, encoder.categories_, dropped, strict=True)
        for code, category in enumerate(categories)
        if code != drop
    ]


def _column_transformer(transformer: Any, columns: Columns, graph: Graph) -> list[int]:
    return translate_column_transformer(transformer, columns, graph, {})


def translate_column_transformer(
    transformer: Any, columns: Columns, graph: Graph, shuffles: dict[int, Any]
) -> list[int]:
    """The columns of a ColumnTransformer, block after block; an ordinal encoder in it takes the `shuffles`."""
    if transformer.transformer_weights or len(columns) != transformer.n_features_in_:
        raise Untranslatable(transformer)
    made: list[int] = []
    for name, part, selected in transformer.transformers_:
        place = transformer.output_indices_[name]
        if (isinstance(part, str) and part == "drop") or place.start == place.stop:
            continue
        given = [columns[int(position)] for position in selected]
        if type(part) is OrdinalEncoder:
            block = translate_ordinal(part, given, graph, shuffles)
        else:
            block = translate_transformer(part, given, graph)
        if (place.start, place.stop) != (len(made), len(made) + len(block)):
            raise Untranslatable(transformer)
        made += block
    return made


def _svd(svd: Any, columns: Columns, graph: Graph) -> list[int]:
    return list(graph.join(Projection, columns, len(svd.components_), svd.components_))


_TRANSLATORS: dict[type, Translator] = {
    AdaptiveQuantileTransformer: _quantile,
    ColumnTransformer: _column_transformer,
    EfficientColumnTransformer: _column_transformer,
    OneHotEncoder: _one_hot,
    OrdinalEncoder: translate_ordinal,
    Pipeline: _pipeline,
    PowerTransformer: _power,
    RobustScaler: _robust,
    SafePowerTransformer: _power,
    SquashingScaler: _squash,
    StandardScaler: standardize,
    TruncatedSVD: _svd,
}
