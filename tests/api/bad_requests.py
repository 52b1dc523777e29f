"""Every kind of request that must be refused, as data: the table of `test_bad_input.py`, usable with any model.

`body` makes the request from a good record and the name of one of its number columns, so nothing here knows a model.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]

NUMBER_COLUMN = "<the number column>"
"""Stands in `BadRequest.column` for the name that was handed to `body`."""


JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class BadRequest:
    """One bad request and the problem that it must be answered with."""

    name: str
    status: int
    code: str
    body: Callable[[Record, str], bytes]
    row: int | None = None
    column: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    method: str = "POST"
    model: str | None = None


def text(body: bytes) -> Callable[[Record, str], bytes]:
    return lambda _record, _number: body


def dump(make: Callable[[Record], object]) -> Callable[[Record, str], bytes]:
    return lambda record, _number: json.dumps(make(record)).encode()


def second_row(**changes: object) -> Callable[[Record, str], bytes]:
    """A good row, then one with other columns."""
    return dump(lambda record: {"records": [record, {**record, **changes}]})


def cell(literal: str) -> Callable[[Record, str], bytes]:
    """A good row, then one whose number column holds these characters of JSON."""

    def make(record: Record, number: str) -> bytes:
        marked = json.dumps({"records": [record, {**record, number: "@@"}]})
        return marked.replace('"@@"', literal).encode()

    return make


def table_cell(literal: str) -> Callable[[Record, str], bytes]:
    def make(record: Record, number: str) -> bytes:
        marked = {**record, number: "@@"}
        table = {"columns": list(record), "data": [list(record.values()), list(marked.values())]}
        return json.dumps(table).replace('"@@"', literal).encode()

    return make


def without_number(record: Record, number: str) -> bytes:
    return json.dumps({"records": [{name: value for name, value in record.items() if name != number}]}).encode()


def good(record: Record, _number: str = "") -> bytes:
    return json.dumps({"records": [record]}).encode()


def _json(name: str, status: int, code: str, body: bytes) -> BadRequest:
    return BadRequest(name, status, code, text(body))


SYNTAX = [
    _json("empty body", 400, "invalid_json", b""),
    _json("not JSON", 400, "invalid_json", b"amount=1&age=2"),
    _json("cut off", 400, "invalid_json", b'{"records": [{"a": 1'),
    _json("text after the end", 400, "invalid_json", b'{"records": []} {}'),
    _json("single quotes", 400, "invalid_json", b"{'records': []}"),
    _json("trailing comma", 400, "invalid_json", b'{"records": [],}'),
    _json("latin-1 text", 400, "invalid_json", '{"records": [{"café": 1}]}'.encode("latin-1")),
    _json("UTF-16", 400, "invalid_json", '{"records": []}'.encode("utf-16")),
    _json("nested too deeply", 400, "invalid_json", b'{"records": [{"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}]}"),
    BadRequest("NaN", 400, "invalid_json", cell("NaN")),
    BadRequest("Infinity", 400, "invalid_json", cell("-Infinity")),
    BadRequest("leading zero", 400, "invalid_json", cell("007")),
    BadRequest(
        "compressed", 415, "unsupported_media_type", lambda record, _: gzip.compress(good(record)),
        headers={"content-type": "application/json", "content-encoding": "gzip"},
    ),
    BadRequest(
        "a form, as curl sends by default", 415, "unsupported_media_type", good,
        headers={"content-type": "application/x-www-form-urlencoded"},
    ),
    BadRequest("CSV", 415, "unsupported_media_type", text(b"a,b\n1,2\n"), headers={"content-type": "text/csv"}),
    BadRequest("bad request id", 400, "invalid_header", good, headers={"x-request-id": "x" * 129}),
    BadRequest("no number for a timeout", 422, "invalid_timeout", good, headers=JSON | {"x-request-timeout-ms": "1s"}),
    BadRequest("a timeout of nothing", 422, "invalid_timeout", good, headers=JSON | {"x-request-timeout-ms": "0"}),
    BadRequest("a negative timeout", 422, "invalid_timeout", good, headers=JSON | {"x-request-timeout-ms": "-5"}),
    BadRequest("a huge timeout", 422, "invalid_timeout", good, headers=JSON | {"x-request-timeout-ms": "9" * 5_000}),
    BadRequest("an unknown priority", 422, "invalid_priority", good, headers=JSON | {"x-priority": "urgent"}),
    BadRequest("unknown model", 404, "unknown_model", good, model="no-such-model"),
    BadRequest("wrong method", 405, "method_not_allowed", text(b""), method="GET"),
]  # fmt: skip

SHAPE = [
    _json("a list on top", 422, "invalid_shape", b"[]"),
    _json("null on top", 422, "invalid_shape", b"null"),
    _json("neither form", 422, "invalid_shape", b"{}"),
    _json("unknown key", 422, "unknown_key", b'{"instances": []}'),
    _json("records is null", 422, "invalid_shape", b'{"records": null}'),
    _json("records is an object", 422, "invalid_shape", b'{"records": {"0": {}}}'),
    _json("columns alone", 422, "invalid_shape", b'{"columns": ["a"]}'),
    _json("data alone", 422, "invalid_shape", b'{"data": [[1]]}'),
    _json("a column name that is no text", 422, "invalid_shape", b'{"columns": [1], "data": [[1]]}'),
    _json("no records", 422, "no_rows", b'{"records": []}'),
    _json("no data", 422, "no_rows", b'{"columns": ["a"], "data": []}'),
    BadRequest(
        "both forms", 422, "invalid_shape",
        dump(lambda record: {"records": [record], "columns": list(record), "data": [list(record.values())]}),
    ),
    BadRequest("a record that is a list", 422, "invalid_shape", dump(lambda r: {"records": [r, [1]]}), row=1),
    BadRequest(
        "a row that is an object", 422, "invalid_shape",
        dump(lambda record: {"columns": list(record), "data": [list(record.values()), {}]}), row=1,
    ),
    BadRequest(
        "a short row", 422, "ragged_row",
        dump(lambda record: {"columns": list(record), "data": [list(record.values()), [1]]}), row=1,
    ),
    BadRequest(
        "a column named twice", 422, "duplicate_column",
        lambda record, number: json.dumps(
            {"columns": [*record, number], "data": [[*record.values(), 1]]}
        ).encode(), column=NUMBER_COLUMN,
    ),
    BadRequest("too many rows", 413, "too_large", dump(lambda record: {"records": [record] * 300})),
]  # fmt: skip

CELLS = [
    BadRequest("overflow", 422, "out_of_range", cell("1e999"), row=1, column=NUMBER_COLUMN),
    BadRequest("overflow in a table", 422, "out_of_range", table_cell("-1e999"), row=1, column=NUMBER_COLUMN),
    BadRequest("5,000 digits", 422, "out_of_range", cell("9" * 5_000), row=1, column=NUMBER_COLUMN),
    BadRequest("400 digits", 422, "out_of_range", cell("9" * 400), row=1, column=NUMBER_COLUMN),
    BadRequest("text for a number", 422, "wrong_type", cell('"cheap"'), row=1, column=NUMBER_COLUMN),
    BadRequest("a list for a number", 422, "wrong_type", cell("[1]"), row=1, column=NUMBER_COLUMN),
    BadRequest("an object for a number", 422, "wrong_type", cell('{"value": 1}'), row=1, column=NUMBER_COLUMN),
    BadRequest("text in a table", 422, "wrong_type", table_cell('"1,50"'), row=1, column=NUMBER_COLUMN),
    BadRequest("an unknown column", 422, "unknown_column", second_row(colour="red"), row=1, column="colour"),
    BadRequest("a missing column", 422, "missing_column", without_number, row=0, column=NUMBER_COLUMN),
]

BAD_REQUESTS = [*SYNTAX, *SHAPE, *CELLS]
