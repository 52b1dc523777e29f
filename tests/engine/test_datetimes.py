"""Text is a date and time by one documented grammar, in requests and in contexts alike."""

import datetime as dt
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.core import Column, ColumnKind, QueryTable
from serve.core.errors import InvalidInput
from serve.engine import datetimes
from serve.engine.row_encoder import RowEncoder

ENCODER = RowEncoder([Column("at", ColumnKind.DATETIME)])

ACCEPTED = {
    "2026-01-31": (20484.0, 0.0),
    "2026-01-31T14:06": (20484 + 14.1 / 24, 14.1),
    "2026-01-31T14:05:00": (20484 + (14 + 5 / 60) / 24, 14 + 5 / 60),
    "2026-01-31 14:06:00": (20484 + 14.1 / 24, 14.1),
    "2026-01-31t14:06:00z": (20484 + 14.1 / 24, 14.1),
    "2026-01-31T14:06:00Z": (20484 + 14.1 / 24, 14.1),
    "2026-01-31T14:06:00.5Z": (20484 + (14.1 + 0.5 / 3600) / 24, 14.1),
    "2026-01-31T14:06:00.000000000": (20484 + 14.1 / 24, 14.1),
    "2026-01-31T14:06+02:00": (20484 + 12.1 / 24, 12.1),
    "2026-01-31T14:06:00+0200": (20484 + 12.1 / 24, 12.1),
    "2026-01-31 14:06:00.25+02": (20484 + (12.1 + 0.25 / 3600) / 24, 12.1),
    "2026-01-31T00:06:00-05:30": (20484 + 5.6 / 24, 5.6),
    "2026-01-31T14:06:00-00:00": (20484 + 14.1 / 24, 14.1),
}

REFUSED = [
    # read by Python's `fromisoformat` as two o'clock, or as half past five
    "2026-01-01+02:00", "20260101+0200", "2026-01-01+05:30", "2026-01-01-05:30", "2026-01-01Z", "20260101Z",
    # milliseconds and seconds since 1970, read as days of the 18th century
    "1706745600000", "1704067200000", "1704067200", "170406720012", "20260101",
    # compact forms, weeks, days of the year, parts of dates
    "20260101T101112", "20260101T101112Z", "2026-01-01T1011", "2026-01-01T101112", "2026-W01-1", "2026W011", "2026-001",
    "2026-01", "2026", "2026-01-01T10", "2026-01-01T10Z", "2026-01-01T",
    # other separators, fractions and zones
    "2026-01-01_10:11", "2026-01-01é10:11", "2026-01-01\n10:11", "2026-01-01  10:11", "2026-01-01T10:11:12,5",
    "2026-01-01T10:11:12.", "2026-01-01T10:11.5", "2026-01-01T10:11+02:00:30", "2026-01-01T10:11+2",
    "2026-01-01T10:11 +02:00", "2026-01-01T10:11+24:00", "2026-01-01T10:11+02:60", "2026-01-01T10:11ZZ",
    "2026-01-01T10:11 Europe/Berlin", "2026-01-01T10:11[UTC]",
    # what does not exist
    "2026-02-29", "2026-13-01", "2026-00-01", "2026-01-00", "0000-01-01", "2026-01-01T24:00", "2026-01-01T23:59:60",
    "2026-01-01T10:60", "10000-01-01", "-2026-01-01", "+2026-01-01", "0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00",
    # space at the ends, other digits, other writings
    " 2026-01-01", "2026-01-01 ", "2026-01-01\n", "2026-01-01T10:11\n", "", "\u0662026-01-01", "2026-01-0\u0661",
    "01/02/2026", "1.2.2026", "Jan 1 2026", "2026/01/01", "now", "NaT", "nan", "2026-01-01\0",
]  # fmt: skip


def encode(cells: Any) -> list[list[Any]]:
    return ENCODER.read(QueryTable.from_columns({"at": cells}))


@pytest.mark.parametrize("text", ACCEPTED)
def test_a_text_of_the_grammar_is_its_moment(text: str) -> None:
    (days,), (hour,), _, _ = encode([text])
    assert (days, hour) == pytest.approx(ACCEPTED[text], rel=1e-13)


@pytest.mark.parametrize("text", REFUSED)
def test_all_else_is_refused_by_row_and_column(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"row 1, column 'at': .* is not a date and time such as 2026-") as refusal:
        encode(["2026-01-01", text])
    assert (refusal.value.code, refusal.value.row, refusal.value.column) == ("invalid_datetime", 1, "at")


def test_no_stamp_in_milliseconds_is_a_date() -> None:
    """94 of these were: their first eight digits are a day, and their last four an hour and a minute."""
    for stamp in np.random.default_rng(0).integers(1_704_067_200_000, 1_735_689_600_000, 20_000).tolist():
        with pytest.raises(ValueError, match="another form"):
            datetimes.parse(str(stamp))


ZONES = st.none() | st.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))


@given(st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 12, 31), timezones=ZONES), st.sampled_from("T "))
def test_what_python_writes_is_read_back(moment: dt.datetime, separator: str) -> None:
    in_utc = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    assert datetimes.parse(moment.isoformat(separator)) == in_utc


@given(st.from_regex(re.compile("[0-9Tt :.+zZ-]{8,30}"), fullmatch=True))
def test_a_text_that_is_read_holds_a_date_and_a_time(text: str) -> None:
    try:
        moment = datetimes.parse(text)
    except (ValueError, OverflowError):
        return
    assert text[:10] == f"{text[:4]}-{text[5:7]}-{text[8:10]}"
    assert len(text) == 10 or text[10] in "Tt "
    assert moment.tzinfo is dt.UTC


MOMENT = dt.datetime(2026, 3, 4, 7, 30, tzinfo=dt.timezone(dt.timedelta(hours=2)))


@pytest.mark.parametrize(
    "cells",
    [
        ["2026-03-04T05:30:00", None],
        [MOMENT, None],
        [MOMENT.astimezone(dt.UTC).replace(tzinfo=None), math.nan],
        [pd.Timestamp(MOMENT), pd.NaT],
        np.array(["2026-03-04T05:30", "NaT"], "datetime64[ns]"),
        np.array(["2026-03-04T05:30", "NaT"], "datetime64[s]"),
        pa.array([MOMENT, None], pa.timestamp("us", "Europe/Berlin")),
        pa.array([MOMENT, None], pa.timestamp("ns", "UTC")),
        pa.array([MOMENT, None], pa.timestamp("s", "UTC")),
    ],
)
def test_the_moments_of_python_numpy_and_arrow_are_their_texts(cells: Any) -> None:
    np.testing.assert_equal(encode(cells), encode(["2026-03-04T05:30:00Z", None]))


def test_days_without_a_time_are_midnight() -> None:
    expected = encode(["2026-03-04"])
    assert encode([dt.date(2026, 3, 4)]) == expected
    assert encode(pa.array([dt.date(2026, 3, 4)])) == expected
    assert encode(np.array(["2026-03-04"], "datetime64[D]")) == expected


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        (np.array([0, 9**17], "datetime64[s]"), "wrong_type"),
        ([MOMENT, 1_700_000_000_000], "wrong_type"),
        ([MOMENT, True], "wrong_type"),
        (["2026-01-01", dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))], "invalid_datetime"),
    ],
)
def test_a_moment_that_cannot_be_read_is_refused_by_its_row(cells: Any, code: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        encode(cells)
    assert (refusal.value.code, refusal.value.row, refusal.value.column) == (code, 1, "at")


def test_the_page_lists_what_is_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    section = page[page.index("### Dates and times") :].partition("\n## ")[0]
    rows = [line.split("|") for line in section.split("\n") if line.startswith("| ")]
    forms = [text for row in rows for text in re.findall("`([^`]+)`", row[2])]
    refused = re.findall("`([^`]+)`", section[section.index("Refused:") :].partition("\n\n")[0])
    assert len(forms) >= 6
    assert len(refused) >= 6
    for text in forms:
        assert datetimes.parse(text)
    for text in refused:
        with pytest.raises(ValueError, match="another form"):
            datetimes.parse(text)
