"""What the bytes of a request may be. The faults themselves: `bad_requests.py`, through the whole server."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from serve.api.errors import InvalidJson, UnsupportedMediaType
from serve.api.native.json_body import check_media_type, decode_table
from serve.core import ABSENT, QueryTable
from serve.core.errors import InvalidInput


def records_of(table: QueryTable) -> list[dict[str, object]]:
    """The table as the records that it was read from."""
    records: list[dict[str, object]] = [{} for _ in range(table.num_rows)]
    for name, cells in zip(table.names, table.columns, strict=True):
        for record, cell in zip(records, cells, strict=True):
            if cell is not ABSENT:
                record[name] = cell
    return records


def test_records_keep_their_cells() -> None:
    table = decode_table(b'{"records": [{"a": 1, "b": "x", "c": null}, {"a": 0.1}]}')
    assert records_of(table) == [{"a": 1, "b": "x", "c": None}, {"a": 0.1}]
    assert table.is_from_records


def test_a_table_keeps_its_cells() -> None:
    table = decode_table(b'{"data": [[1, "x"], [null, true]], "columns": ["a", "b"]}')
    assert (table.names, table.columns) == (("a", "b"), ((1, None), ("x", True)))
    assert not table.is_from_records


@pytest.mark.parametrize("type_", ["", "application/json", "Application/JSON; charset=utf-8", "application/x.y+json"])
def test_json_and_silence_are_accepted(type_: str) -> None:
    check_media_type(Headers({"content-type": type_} if type_ else {}))


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/csv"},
        {"content-type": "text/json+html"},
        {"content-encoding": "gzip"},
    ],
)
def test_anything_else_is_told_what_to_send(headers: dict[str, str]) -> None:
    with pytest.raises(UnsupportedMediaType, match="send"):
        check_media_type(Headers(headers))


@pytest.mark.parametrize(
    ("body", "row", "column"),
    [
        (b'{"records": [{"a": 1}, {"a": 1, "b": 1e999}]}', 1, "b"),
        (b'{"columns": ["a", "b"], "data": [[1, -1e400]]}', 0, "b"),
        (b'{"records": [{"a": [{"deep": 1e999}]}]}', 0, "a"),
        (b'{"records": [{"a": ' + b"9" * 5000 + b"}]}", 0, "a"),
        (b'{"data": [[1e999]]}', 0, None),
        (b'{"records": 1e999}', None, None),
    ],
)
def test_a_number_out_of_range_is_found(body: bytes, row: int | None, column: str | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_table(body)
    assert (caught.value.row, caught.value.column) == (row, column)


def test_the_place_of_a_bad_byte_is_in_the_body() -> None:
    with pytest.raises(InvalidJson, match="byte 19"):
        decode_table(b'{"records": [{"a": \xff}]}')
    with pytest.raises(InvalidJson, match="byte 21"):
        decode_table(b'{"records": [{"a": "b\xff"}]}')


# Other programs share the machine: how long an example takes says nothing.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
texts = st.text('ab"\\\0é☃\U0001f600', max_size=4)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
keys = st.sampled_from(["records", "columns", "data", "more"])


@relaxed
@given(st.dictionaries(keys, json_values, max_size=4).map(msgspec.json.encode) | st.binary(max_size=40))
def test_whatever_is_sent_is_understood_or_refused_politely(body: bytes) -> None:
    try:
        table = decode_table(body)
    except (InvalidInput, InvalidJson):
        return
    assert table.num_rows >= 1
    assert all(len(cells) == table.num_rows for cells in table.columns)


@relaxed
@given(st.lists(st.dictionaries(texts, json_values, max_size=3), min_size=1, max_size=4))
def test_every_list_of_objects_is_a_query(records: list[dict[str, object]]) -> None:
    assert records_of(decode_table(msgspec.json.encode({"records": records}))) == records
