"""The grammar of dates and times in text, and the numbers that a moment becomes.

Python's `fromisoformat` reads more than it seems to: any character stands between date and time, so it takes
`2026-01-01+02:00` for two o'clock, and a number of 13 digits for a day of the 18th century. Here text is matched with
one documented form first (docs/models.md), which is RFC 3339 and the forms that databases and dataframes write:

    DATE                       2026-01-31                  midnight
    DATE ("T" | " ") TIME      2026-01-31T14:05            also with seconds, and a fraction of a second after a dot
    ... ZONE                   2026-01-31 14:05:00.25+02   "Z", +hh:mm, +hhmm or +hh; without a zone it is UTC

`T` and `Z` may be small. All else is refused: forms without separators, weeks, days of the year, commas, a zone without
a time, hour 24, second 60, space at either end.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

DATETIME_PARTS = ("days", "hour", "weekday", "month")
"""What a moment becomes: days since 1970, hour of the day with its fraction, weekday (Monday is 0), month."""

EXAMPLE = "2026-01-31T14:05:00Z"

_HOUR, _SIXTY = "(?:[01][0-9]|2[0-3])", "[0-5][0-9]"
_FORM = re.compile(
    "[0-9]{4}-[0-9]{2}-[0-9]{2}"
    rf"(?:[Tt ]{_HOUR}:{_SIXTY}(?::{_SIXTY}(?:\.[0-9]+)?)?(?:[Zz]|[+-]{_HOUR}(?::?{_SIXTY})?)?)?"
).fullmatch


def parse(text: str) -> datetime:
    """The moment that a text names, in UTC.

    Raises:
        ValueError: the text has another form, or names a day or year that does not exist.
        OverflowError: in UTC it lies outside the years 1 to 9999.
    """
    if _FORM(text) is None:
        raise ValueError("another form")
    if text[-1] == "z":  # Python reads the capital letter only
        text = text[:-1] + "Z"
    return in_utc(datetime.fromisoformat(text))


def in_utc(moment: date) -> datetime:
    """A date or datetime in UTC; without a zone it is in UTC already. Raises OverflowError as `parse`."""
    if not isinstance(moment, datetime):
        return datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def parts(moment: datetime) -> tuple[float, float, float, float]:
    """The numbers of a moment in UTC, in the order of `DATETIME_PARTS`."""
    hour = moment.hour + moment.minute / 60 + moment.second / 3_600
    return moment.timestamp() / 86_400, hour, float(moment.weekday()), float(moment.month)
