"""A table of query rows: its shape is checked once, whatever form it came in."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.core import ABSENT, QueryTable
from serve.core.errors import InvalidInput


def test_records_become_columns() -> None:
    table = QueryTable.from_records([{"a": 1, "b": None}, {"b": "x", "a": 2}])
    assert (table.names, table.columns, table.num_rows) == (("a", "b"), ([1, 2], [None, "x"]), 2)
    assert table.is_from_records


def test_records_of_unequal_names_keep_what_each_named() -> None:
    table = QueryTable.from_records([{"a": 1}, {"b": 2}])
    assert (table.names, table.columns) == (("a", "b"), ([1, ABSENT], [ABSENT, 2]))


def test_rows_become_columns() -> None:
    table = QueryTable.from_rows(["a", "b"], [[1, 2], [3, 4], [5, 6]])
    assert (table.names, table.columns, table.num_rows) == (("a", "b"), ((1, 3, 5), (2, 4, 6)), 3)
    assert not table.is_from_records


def test_columns_are_taken_as_they_are() -> None:
    amounts = np.array([1.5, 2.5])
    table = QueryTable.from_columns({"amount": amounts, "country": ["DE", None]})
    assert table.columns[0] is amounts
    assert table.num_rows == 2


@pytest.mark.parametrize("rows", [1, 3])
@given(data=st.data())
def test_records_and_rows_of_the_same_cells_are_the_same_columns(rows: int, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text(max_size=5), unique=True, min_size=1, max_size=5))
    cells = [[data.draw(st.integers() | st.none() | st.text(max_size=3)) for _ in names] for _ in range(rows)]
    by_row = QueryTable.from_rows(names, cells)
    by_record = QueryTable.from_records([dict(zip(names, row, strict=True)) for row in cells])
    assert by_row.names == by_record.names
    assert list(map(list, by_row.columns)) == list(map(list, by_record.columns))


@pytest.mark.parametrize(
    ("make", "code", "row"),
    [
        (lambda: QueryTable.from_records([]), "no_rows", None),
        (lambda: QueryTable.from_rows(["a"], []), "no_rows", None),
        (lambda: QueryTable.from_columns({}), "no_rows", None),
        (lambda: QueryTable.from_columns({"a": []}), "no_rows", None),
        (lambda: QueryTable.from_records([{"a": 1}, [1]]), "invalid_record", 1),
        (lambda: QueryTable.from_records([[0]]), "invalid_record", 0),
        (lambda: QueryTable.from_records(["a"]), "invalid_record", 0),
        (lambda: QueryTable.from_rows(["a"], [[1], "x"]), "invalid_record", 1),
        (lambda: QueryTable.from_rows(["a"], [[1], None]), "invalid_record", 1),
        (lambda: QueryTable.from_rows(["a", "b", "a"], [[1, 2, 3]]), "duplicate_column", None),
        (lambda: QueryTable.from_rows(["a", "b"], [[1, 2], [1]]), "ragged_row", 1),
        (lambda: QueryTable.from_columns({"a": [1, 2], "b": [1]}), "ragged_row", 1),
    ],
)
def test_a_wrong_shape_is_refused_with_its_place(make: Any, code: str, row: int | None) -> None:
    with pytest.raises(InvalidInput) as refusal:
        make()
    assert (refusal.value.code, refusal.value.row) == (code, row)
