"""Tables against scikit-learn and tabpfn, where knots repeat, at the ends and beyond them."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.preprocessing import OrdinalEncoder, QuantileTransformer
from tabpfn.preprocessing.torch.torch_quantile_transformer import TorchQuantileTransformer

from serve.engine.preprocessing.graph import Graph
from serve.engine.preprocessing.tables import Quantile, TorchQuantile
from serve.engine.preprocessing.transformers import translate_transformer

COLUMNS = {
    "plain": np.random.default_rng(0).normal(size=60),
    "repeated": np.repeat([0.0, 1.0, 1.5, 4.0], [30, 10, 15, 5]),
    "ends": np.repeat([-2.0, 0.3, 7.0], [25, 10, 25]),
    "constant": np.full(60, 3.0),
    "zero": np.zeros(60),
    "huge": np.random.default_rng(1).normal(size=60) * 1e150,
    "tiny": np.random.default_rng(2).normal(size=60) * 1e-150,
}


def probes(column: np.ndarray) -> np.ndarray:
    """The values themselves, their neighbours, the middles between, and far beyond; NaN as well."""
    middles = (column[:-1] + column[1:]) / 2
    ends = [column.min() - 1, column.max() + 1, -1e300, 1e300, -0.0, 0.0, np.nan]
    return np.concatenate([column, np.nextafter(column, np.inf), np.nextafter(column, -np.inf), middles, ends])


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("num_quantiles", [2, 7, 60])
def test_quantile_is_scikit_learns_to_the_bit(name: str, num_quantiles: int) -> None:
    fitted = QuantileTransformer(n_quantiles=num_quantiles).fit(COLUMNS[name][:, None])
    rows = probes(COLUMNS[name])
    got = Quantile(fitted.quantiles_.T, fitted.references_[None])(rows[None])
    np.testing.assert_array_equal(got[0], fitted.transform(rows[:, None])[:, 0])


@pytest.mark.parametrize("num_quantiles", [2, 7, 31, 32, 60])
def test_quantiles_of_many_rows_are_those_of_each_row(num_quantiles: int) -> None:
    """Many rows are searched for together. The columns differ in their number of different knots."""
    fitted = QuantileTransformer(n_quantiles=num_quantiles).fit(np.stack(list(COLUMNS.values()), axis=1))
    quantile = Quantile(fitted.quantiles_.T, np.tile(fitted.references_, (len(COLUMNS), 1)))
    rows = np.stack([probes(column) for column in COLUMNS.values()])
    alone = np.concatenate([quantile(row) for row in np.split(rows, rows.shape[1], axis=1)], axis=1)
    np.testing.assert_array_equal(quantile(rows), alone)
    for stop in (31, 32, 33):
        np.testing.assert_array_equal(quantile(rows[:, :stop]), alone[:, :stop])


@pytest.mark.parametrize("ratio", [None, 0.5])
@pytest.mark.parametrize("name", ["plain", "repeated", "ends", "constant"])
def test_torch_quantile_is_tabpfns_to_the_bit(name: str, ratio: float | None) -> None:
    transformer = TorchQuantileTransformer(n_quantiles=9, extrapolate_ratio=ratio)
    cache = transformer.fit(torch.from_numpy(COLUMNS[name].astype(np.float32))[:, None])
    with np.errstate(over="ignore"):
        rows = probes(COLUMNS[name]).astype(np.float32)
    rows = rows[~np.isinf(rows)]
    knots, references = cache["quantiles"].numpy().T, cache["references"].numpy()[None]
    got = TorchQuantile(np.ascontiguousarray(knots), references, np.float32([np.nan if ratio is None else ratio]))
    expected = transformer.transform(torch.from_numpy(rows)[:, None], cache)
    np.testing.assert_array_equal(got(rows[None])[0], expected.numpy()[:, 0])


def test_codes_are_scikit_learns() -> None:
    context = np.array([[0, 5.0], [2, np.nan], [7, 5.5], [2, -1]])
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan).fit(context)
    rows = np.array([[0, 5], [2, np.nan], [-1, 1e300], [7, -1], [np.nan, 5.5], [1, -0.0], [8, 6]])
    graph = Graph(np.float64)
    columns = translate_transformer(encoder, [graph.input(0), graph.input(1)], graph)
    plan = graph.plan(columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = encoder.transform(rows)
    np.testing.assert_array_equal(plan(rows.T)[[plan.place[column] for column in columns]].T, expected)
