"""Cells become numbers alone, or are refused by row and column."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import COLUMNS, records

from serve.core import Column, ColumnKind, QueryTable
from serve.core.errors import InvalidInput
from serve.engine.cell_readers import MAX_MAGNITUDE
from serve.engine.coding import Coding, feature_names
from serve.engine.engine import TabPFNContext
from serve.engine.row_encoder import RowEncoder

GOOD = {"amount": 1.5, "country": "DE", "code": 12, "seen_at": "2026-03-04T05:30:00", "note": "hello"}
CODINGS = [
    Coding(),
    Coding(codes={"DE": 0.0, "FR": 1.0}, missing=math.nan),
    Coding(codes={"12": 3.0}, missing=-1.0),
    *[Coding()] * 4,
    Coding(constant=7.0),
]
ENCODER = RowEncoder(COLUMNS, CODINGS)


def encode(**changes: Any) -> list[float]:
    encoded: list[float] = ENCODER.encode(QueryTable.from_records([{**GOOD, **changes}]))[0].tolist()
    return encoded


def test_each_kind_becomes_its_numbers() -> None:
    assert feature_names(COLUMNS) == [
        "amount", "country", "code", "seen_at:days", "seen_at:hour", "seen_at:weekday", "seen_at:month", "note",
    ]  # fmt: skip
    days = 20516 + 5.5 / 24  # 2026-03-04 is a Wednesday
    assert encode() == pytest.approx([1.5, 0.0, 3.0, days, 5.5, 2.0, 3.0, 7.0])


@pytest.mark.parametrize(
    ("changes", "position", "expected"),
    [
        ({"amount": True}, 0, 1.0),
        ({"amount": None}, 0, math.nan),
        ({"amount": math.nan}, 0, math.nan),
        ({"country": "XX"}, 1, -1.0),
        ({"country": None}, 1, math.nan),
        ({"country": math.nan}, 1, math.nan),
        ({"code": "12"}, 2, 3.0),
        ({"code": 12.0}, 2, 3.0),
        ({"code": 12.5}, 2, -1.0),
        ({"code": None}, 2, -1.0),
        ({"code": True}, 2, -1.0),
        ({"seen_at": "2026-03-04T05:30:00Z"}, 4, 5.5),
        ({"seen_at": "2026-03-04T07:30:00+02:00"}, 4, 5.5),
        ({"seen_at": "2026-03-04"}, 4, 0.0),
        ({"seen_at": None}, 5, math.nan),
        ({"note": "whatever"}, 7, 7.0),
    ],
)
def test_a_cell_is_defined(changes: dict[str, Any], position: int, expected: float) -> None:
    np.testing.assert_equal(encode(**changes)[position], expected)


@pytest.mark.parametrize(
    ("changes", "code", "column"),
    [
        ({"amount": "1.5"}, "wrong_type", "amount"),
        ({"amount": [1]}, "wrong_type", "amount"),
        ({"amount": {}}, "wrong_type", "amount"),
        ({"amount": math.inf}, "out_of_range", "amount"),
        ({"amount": -1e39}, "out_of_range", "amount"),
        ({"amount": 10**400}, "out_of_range", "amount"),
        ({"country": ["DE"]}, "wrong_type", "country"),
        ({"country": {"a": 1}}, "wrong_type", "country"),
        ({"code": math.inf}, "out_of_range", "code"),
        ({"code": 10**5000}, "out_of_range", "code"),
        ({"seen_at": 1_700_000_000}, "wrong_type", "seen_at"),
        ({"seen_at": "yesterday"}, "invalid_datetime", "seen_at"),
        ({"seen_at": "2026-13-01"}, "invalid_datetime", "seen_at"),
        ({"seen_at": "0001-01-01T00:00:00+14:00"}, "invalid_datetime", "seen_at"),
        ({"surprise": 1}, "unknown_column", "surprise"),
    ],
)
def test_a_cell_is_refused_by_place(changes: dict[str, Any], code: str, column: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        ENCODER.encode(QueryTable.from_records([GOOD, {**GOOD, **changes}]))
    assert (refusal.value.code, refusal.value.row, refusal.value.column) == (code, 1, column)
    assert column in str(refusal.value)


def test_a_missing_column_is_not_a_missing_value() -> None:
    with pytest.raises(InvalidInput, match=r"lacks column 'note'.*null") as refusal:
        ENCODER.encode(QueryTable.from_records([{name: cell for name, cell in GOOD.items() if name != "note"}]))
    assert (refusal.value.code, refusal.value.row, refusal.value.column) == ("missing_column", 0, "note")


def test_one_column_exchanged_for_another_names_the_stranger() -> None:
    swapped = {("nota" if name == "note" else name): cell for name, cell in GOOD.items()}
    with pytest.raises(InvalidInput) as refusal:
        ENCODER.encode(QueryTable.from_records([swapped]))
    assert (refusal.value.code, refusal.value.column) == ("unknown_column", "nota")


def test_a_table_is_its_records_in_any_column_order() -> None:
    rows = records(20)
    names = list(reversed(list(rows[0])))
    table = [[row[name] for name in names] for row in rows]
    np.testing.assert_array_equal(
        ENCODER.encode(QueryTable.from_rows(names, table)), ENCODER.encode(QueryTable.from_records(rows))
    )


@pytest.mark.parametrize(
    ("columns", "data", "code", "row"),
    [
        ([*GOOD, "amount"], [[*GOOD.values(), 1]], "duplicate_column", None),
        ([*GOOD], [[*GOOD.values()], [1]], "ragged_row", 1),
        ([*GOOD], [[*GOOD.values()], "abcde"], "invalid_record", 1),
        ([*GOOD], [{"a": 1}], "invalid_record", 0),
        (["amount"], [[1]], "missing_column", None),
        ([*GOOD, "extra"], [[*GOOD.values(), 1]], "unknown_column", None),
    ],
)
def test_a_table_is_refused_by_place(columns: list[str], data: list[Any], code: str, row: int | None) -> None:
    with pytest.raises(InvalidInput) as refusal:
        ENCODER.encode(QueryTable.from_rows(columns, data))
    assert (refusal.value.code, refusal.value.row) == (code, row)


def test_a_record_that_is_no_object() -> None:
    with pytest.raises(InvalidInput) as refusal:
        ENCODER.encode(QueryTable.from_records([GOOD, [1, 2]]))  # type: ignore[list-item]
    assert (refusal.value.code, refusal.value.row) == ("invalid_record", 1)


CELLS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=1)
)


@given(st.lists(st.fixed_dictionaries({column.name: CELLS for column in COLUMNS}), min_size=1, max_size=5))
def test_any_cells_are_numbers_or_a_refusal_with_its_place(rows: list[dict[str, Any]]) -> None:
    refusal, encoded = None, None
    try:
        encoded = ENCODER.encode(QueryTable.from_records(rows))
    except InvalidInput as error:
        refusal = error
    if encoded is None:
        assert refusal is not None
        assert refusal.row is not None
        assert refusal.column in GOOD
    else:
        assert encoded.shape == (len(rows), len(CODINGS))
        assert not np.isinf(encoded).any()
        one_by_one = [ENCODER.encode(QueryTable.from_records([row])) for row in rows]
        np.testing.assert_array_equal(encoded, np.concatenate(one_by_one))


def test_codings_are_tabpfns(classifier: TabPFNContext) -> None:
    """Unknown and missing categories become the numbers that tabpfn's fitted cleaning gives them."""
    row = {**records(1, seed=4)[0], "country": "XX", "code": "XX"}
    known = {**row, "country": "FR"}
    encoded = classifier.encode(QueryTable.from_records([row, known, {**row, "country": None}]))
    assert encoded[0, 1] == -1.0
    assert encoded[1, 1] >= 0
    assert np.isnan(encoded[2, 1])


def test_a_constant_column_keeps_its_number() -> None:
    encoder = RowEncoder([Column("x", ColumnKind.NUMBER)], [Coding(constant=3.0)])
    np.testing.assert_array_equal(encoder.encode(QueryTable.from_records([{"x": 99}, {"x": None}])), [[3.0], [3.0]])


def test_a_number_beyond_its_limits_is_refused_by_place() -> None:
    """Limits are of matrix columns, of which a date has four; the refusal names the input."""
    encoder = RowEncoder(COLUMNS, CODINGS).limited_to({0: (-2.0, MAX_MAGNITUDE), 3: (0.0, 30_000.0)})
    good = QueryTable.from_records([{**GOOD, "amount": -2.0}, {**GOOD, "amount": None, "seen_at": None}])
    np.testing.assert_array_equal(encoder.encode(good), ENCODER.encode(good))
    for changes in ({"amount": -2.0001}, {"amount": -1e38}, {"seen_at": "2060-01-01"}, {"seen_at": "1960-01-01"}):
        with pytest.raises(InvalidInput, match="preprocessing can transform; it takes") as refusal:
            encoder.encode(QueryTable.from_records([GOOD, {**GOOD, **changes}]))
        assert (refusal.value.code, refusal.value.row, refusal.value.column) == ("out_of_range", 1, *changes)
