"""How a JSON number or flag finds its category where the context holds the category as another text.

A request's number becomes its shortest text: 7995 and 7995.0 are both "7995", and 1e22 is "10000000000000000000000". A
flag is "true" or "false". But a context may hold what another program wrote: "7995.0", "1e+22", "True". The rule:

1. The shortest text wins where the context has it.
2. Otherwise the number meets the text of the same number, and the flag the text that differs in capitals only. Of
   several such texts it meets Python's ("7995.0", "1e+22", "True"), and none where Python's is not among them.

A text of a number has JSON's form, so "007", "+5" and "1_000" are names and no numbers. A string meets its equal only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch
_FLAGS = {"true": True, "false": False}
_MAX_CHARS = 400
"""No text of a finite number that a program writes is longer."""


def shortest_text(value: float | bool) -> str:
    """The text of a JSON number or flag: no decimals for a whole number, and Python's text of any other.

    Raises:
        ValueError: the number is infinite, or a whole number of thousands of digits.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if math.isinf(value):
        raise ValueError("an infinite number")
    # numpy's floats are Python's too, but for their own repr
    return str(int(value)) if value.is_integer() else float.__repr__(value)


def number_aliases(texts: Iterable[str]) -> Mapping[str, str]:
    """The category that stands in for a number's or flag's shortest text, where the context lacks that text.

    Args:
        texts: the categories of a column in its context.
    """
    known = set(texts)
    alike: dict[str, list[str]] = {}
    python_texts: dict[str, str] = {}
    for text in known:
        value = _value(text)
        name = None if value is None else shortest_text(value)
        if value is not None and name is not None and name not in known:
            alike.setdefault(name, []).append(text)
            python_texts[name] = str(value) if isinstance(value, bool) else repr(float(value))
    aliases = {}
    for name, candidates in alike.items():
        if len(candidates) == 1:
            aliases[name] = candidates[0]
        elif python_texts[name] in candidates:
            aliases[name] = python_texts[name]
    return aliases


def unmet_texts(texts: Iterable[str]) -> list[str]:
    """The categories that look like numbers or flags, and that only a string can meet; sorted."""
    known = set(texts)
    met = set(number_aliases(known).values())
    return sorted(text for text in known - met if _looks_like_a_value(text) and not _is_shortest(text))


def _value(text: str) -> int | float | bool | None:
    """The finite number or flag that a text is in JSON, capitals of a flag aside."""
    if len(text) > _MAX_CHARS:
        return None
    if _NUMBER(text) is None:
        return _FLAGS.get(text.lower())
    value: int | float = json.loads(text)
    return value if isinstance(value, int) or math.isfinite(value) else None


def _is_shortest(text: str) -> bool:
    value = _value(text)
    return value is not None and shortest_text(value) == text


def _looks_like_a_value(text: str) -> bool:
    if text.lower() in _FLAGS:
        return True
    try:
        return len(text) <= _MAX_CHARS and math.isfinite(float(text))
    except ValueError:
        return False
