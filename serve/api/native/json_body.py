"""Reads JSON bodies into a `QueryTable` and writes predictions as JSON.

A valid body costs one call of msgspec. The place of a fault is searched only after that call has failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from starlette.datastructures import Headers

from serve.api.errors import InvalidJson, UnsupportedMediaType
from serve.api.native.schemas import (
    RECORDS_FORM,
    TABLE_FORM,
    ClassificationAnswer,
    ClassPrediction,
    Query,
    RegressionAnswer,
    TimingMs,
    ValuePrediction,
)
from serve.core import QUANTILES, REGRESSION_STATISTICS, Prediction, QueryTable
from serve.core.errors import InvalidInput
from serve.replica.interface import ServedModel

assert len(REGRESSION_STATISTICS) == 2 + len(QUANTILES), "mean, median and one column per quantile"

_FORMS = f"the body is either {RECORDS_FORM} or {TABLE_FORM}"
_DECODER = msgspec.json.Decoder(Query)
_UNKNOWN_KEY = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_PLACE = re.compile(r"\$\.(?:records|data)\[(\d+)\]")
_MAX_NAME_CHARS = 100


def check_media_type(headers: Headers) -> None:
    """Raise UnsupportedMediaType for a body that is declared as anything else than uncompressed JSON."""
    content_type = headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in ("", "application/json") and not re.fullmatch(r"application/[\w.-]+\+json", media_type):
        raise UnsupportedMediaType(f"cannot read {media_type!r}; send JSON with Content-Type: application/json")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(f"cannot read Content-Encoding {encoding!r}; send the body as it is")


def decode_table(body: bytes) -> QueryTable:
    """The rows of a body in exactly one of the two forms.

    Raises:
        InvalidJson: not JSON, or not UTF-8.
        InvalidInput: JSON of another shape; names the row where there is one.
    """
    try:
        query = _DECODER.decode(body)
    except UnicodeDecodeError:
        raise InvalidJson(_not_utf8(body)) from None
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _misshapen(body, str(error)) from None
    except msgspec.DecodeError as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None
    return _table(query)


def _not_utf8(body: bytes) -> str:
    # msgspec counts the bytes within one JSON string; the caller needs the place in the body.
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"the body is not UTF-8: byte {error.start} ({error.reason})"
    return "the body is not UTF-8"


def _misshapen(body: bytes, message: str) -> InvalidInput:
    if unknown := _UNKNOWN_KEY.fullmatch(message):
        return InvalidInput(f"unknown key {unknown[1][:_MAX_NAME_CHARS]!r}; {_FORMS}", code="unknown_key")
    place = _PLACE.search(message)
    row = int(place[1]) if place else None
    if "out of range" not in message:
        return InvalidInput(f"{message}; {_FORMS}", code="invalid_shape", row=row)
    column = None if row is None else _unreadable_column(body, row)
    return InvalidInput("a number is too large for float64", code="out_of_range", row=row, column=column)


class _RawQuery(msgspec.Struct):
    records: list[dict[str, msgspec.Raw]] = []
    columns: list[str] = []
    data: list[list[msgspec.Raw]] = []


def _unreadable_column(body: bytes, row: int) -> str | None:
    """The column of the first unreadable cell of `row`; None where the body cannot be read even for this."""
    try:
        query = msgspec.json.decode(body, type=_RawQuery)
        cells: Iterable[tuple[str, msgspec.Raw]]
        cells = query.records[row].items() if query.records else zip(query.columns, query.data[row], strict=False)
        return next((name for name, cell in cells if not _is_readable(cell)), None)
    except (msgspec.DecodeError, IndexError):
        return None


def _is_readable(cell: msgspec.Raw) -> bool:
    try:
        msgspec.json.decode(cell)
    except msgspec.DecodeError:
        return False
    return True


def _table(query: Query) -> QueryTable:
    records, columns, data = query.records, query.columns, query.data
    if records is not msgspec.UNSET:
        if columns is not msgspec.UNSET or data is not msgspec.UNSET:
            raise InvalidInput(f"found both of the two forms; {_FORMS}", code="invalid_shape")
        return QueryTable.from_records(records)
    if columns is msgspec.UNSET and data is msgspec.UNSET:
        raise InvalidInput(f"found neither of the two forms; {_FORMS}", code="invalid_shape")
    if columns is msgspec.UNSET or data is msgspec.UNSET:
        raise InvalidInput(f"`columns` and `data` belong together; {_FORMS}", code="invalid_shape")
    return QueryTable.from_rows(columns, data)


def encode_answer(model: ServedModel, prediction: Prediction, request_id: str, total_ms: float) -> bytes:
    """The JSON of one answer. Numbers keep every digit of float64; times are rounded to the microsecond."""
    timing = TimingMs(round(prediction.timing.queue_ms, 3), round(prediction.timing.compute_ms, 3), round(total_ms, 3))
    name, version, classes = model.definition.name, model.definition.version, model.fitted.classes
    outputs = prediction.outputs
    if not classes:
        values = [_value_prediction(row) for row in outputs.tolist()]
        return msgspec.json.encode(RegressionAnswer(name, version, values, request_id, prediction.batch_rows, timing))
    rows = outputs.tolist()
    labels = [classes[row.index(max(row))] for row in rows]
    predictions = list(map(ClassPrediction, labels, rows))
    return msgspec.json.encode(
        ClassificationAnswer(name, version, list(classes), predictions, request_id, prediction.batch_rows, timing)
    )


_QUANTILE_NAMES = tuple(f"{quantile:g}" for quantile in QUANTILES)


def _value_prediction(row: list[float]) -> ValuePrediction:
    return ValuePrediction(row[0], row[1], dict(zip(_QUANTILE_NAMES, row[2:], strict=True)))
