"""One row alone becomes the same numbers, to the bit, as the same row in a table of two, or is refused alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve.core import Column, ColumnKind, Matrix, QueryTable
from serve.core.errors import InvalidInput
from serve.engine.cell_readers import MAX_MAGNITUDE
from serve.engine.coding import Coding
from serve.engine.row_encoder import RowEncoder

COLUMNS = [
    Column("amount", ColumnKind.NUMBER),
    Column("signless", ColumnKind.NUMBER),
    Column("limited", ColumnKind.NUMBER),
    Column("coded", ColumnKind.NUMBER),
    Column("constant", ColumnKind.NUMBER),
    Column("country", ColumnKind.CATEGORY),
    Column("flag", ColumnKind.CATEGORY),
    Column("only", ColumnKind.CATEGORY),
    Column("note", ColumnKind.TEXT),
    Column("at", ColumnKind.DATETIME),
]
CODINGS = [
    Coding(),
    Coding(keeps_zero_sign=False),
    Coding(limits=(-10.0, 1e30)),
    Coding(codes={1.0: 0.0, 2.0**53: 1.0, -0.5: 2.0}, missing=math.nan, unknown=-1.0),
    Coding(constant=4.0),
    Coding(codes={"DE": 0.0, "7995": 1.0}, missing=2.0),
    Coding(codes={"True": 0.0, "7995.0": 1.0}, missing=math.nan),
    Coding(constant=7.0),
    Coding(codes={"hello": 0.0}, missing=math.nan, unknown=3.0),
    *[Coding()] * 4,
]
ENCODER = RowEncoder(COLUMNS, CODINGS)
USUAL: dict[str, Any] = {
    "amount": 1.5, "signless": -0.0, "limited": 3, "coded": 2**53 + 1, "constant": None, "country": "DE", "flag": True,
    "only": "x", "note": "hello", "at": "2026-03-04T05:30:00Z",
}  # fmt: skip
CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(-(2**80), 2**80),
    st.sampled_from([MAX_MAGNITUDE, -MAX_MAGNITUDE, 2 * MAX_MAGNITUDE, 2**53, 2**53 + 1, 10**400, -0.0, 1e31, -11]),
    st.sampled_from(["DE", "7995", "7995.0", "True", "hello", "2026-03-04", "noon", ""]),
    st.text(max_size=3),
    st.just([]),
)
ROWS = st.fixed_dictionaries({}, optional={column.name: CELLS for column in COLUMNS}).map(lambda some: USUAL | some)


def encoded(table: QueryTable) -> Matrix | tuple[str, str | None]:
    """The first row, or the code and column of the refusal."""
    try:
        return ENCODER.encode(table)[:1]
    except InvalidInput as error:
        return error.code, error.column


@given(ROWS)
@example(USUAL)
@example(USUAL | {"amount": -0.0, "signless": None, "coded": None, "country": None, "note": None, "at": None})
@settings(max_examples=300)
def test_a_row_alone_is_the_row_in_company(row: dict[str, Any]) -> None:
    alone, in_company = encoded(QueryTable.from_records([row])), encoded(QueryTable.from_records([row, row]))
    if isinstance(in_company, tuple):
        assert alone == in_company
    else:
        assert isinstance(alone, np.ndarray)
        assert alone.dtype == np.float64
        np.testing.assert_array_equal(np.signbit(alone), np.signbit(in_company))
        np.testing.assert_array_equal(alone, in_company)


@pytest.mark.parametrize("changes", [{}, {"flag": 7995}, {"at": None}, {"limited": -10.0}])
def test_usual_rows_are_read_in_one_loop(changes: dict[str, Any]) -> None:
    table = QueryTable.from_records([USUAL | changes])
    assert ENCODER._encode_single(table) is not None


@pytest.mark.parametrize(
    "table",
    [
        QueryTable.from_records([USUAL | {"amount": True}]),
        QueryTable.from_records([USUAL | {"amount": math.inf}]),
        QueryTable.from_records([USUAL | {"country": 7995}]),
        QueryTable.from_records([dict(reversed(USUAL.items()))]),
        QueryTable.from_records([USUAL, USUAL]),
    ],
)
def test_the_others_are_left_to_the_columns(table: QueryTable) -> None:
    assert ENCODER._encode_single(table) is None
