"""Settings in words, for help, documentation and error messages: defaults, limits, choices, and what is wrong."""

from __future__ import annotations

import difflib
import reprlib
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from serve.settings.model_source import ModelSource
from serve.settings.schema import ServerSettings, every_setting

_LIMITS = {Ge: "at least {0.ge}", Gt: "above {0.gt}", Le: "at most {0.le}"}

_EXPECTED = {
    "greater_than_equal": "must be at least {ge:.10g}",
    "greater_than": "must be above {gt:.10g}",
    "less_than_equal": "must be at most {le:.10g}",
    "finite_number": "must be a finite number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "model_type": "must hold keys and values, such as `{{key: value}}`",
}
"""What a value must be, by pydantic's kind of error; the braces take the error's limits."""

_PATTERNS = {
    "name": "must be 1 to 64 letters, digits, `.`, `_` or `-`, the first a letter or digit",
    "sha256": "must be 64 hexadecimal digits",
}


class InvalidSettings(ValueError):
    """A setting, an option or a configuration file is at fault. The message is one line for the operator."""


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The values that a setting may have, where they are few and named; else none."""
    return () if _may_be_a_number(field) else _named_values(field)


def _named_values(field: FieldInfo) -> tuple[str, ...]:
    variants = (field.annotation, *typing.get_args(field.annotation))  # of `Literal[...] | None` too
    return next((typing.get_args(kind) for kind in variants if typing.get_origin(kind) is typing.Literal), ())


def _may_be_a_number(field: FieldInfo) -> bool:
    return bool({int, float} & {field.annotation, *typing.get_args(field.annotation)})


def default_of(field: FieldInfo) -> str:
    """The default as an operator would write it, or `empty`."""
    value = field.default
    return "empty" if value in (None, ()) else str(value).lower() if isinstance(value, bool) else str(value)


def limits_of(field: FieldInfo) -> str:
    """The range of a number, such as `at least 1, at most 32768`, or what may stand for one, or nothing."""
    if _may_be_a_number(field) and (names := _named_values(field)):
        return f"a whole number, or {' or '.join(names)}"
    return ", ".join(_LIMITS[type(limit)].format(limit) for limit in field.metadata if type(limit) in _LIMITS)


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """`; did you mean ...?` with the valid name that is nearest, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def in_words(error: ErrorDetails) -> str:
    """One line about the first fault that pydantic found: where it is, what is wrong, and what would be right."""
    place, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        return unknown_key(place)
    name = ".".join(map(str, place))
    subject = f"setting {name}" if place[0] in ServerSettings.model_fields else f"option --{name.replace('_', '-')}"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return f"{subject}: is missing"
    if kind == "value_error":
        return f"{subject}: {message}"
    if kind == "string_pattern_mismatch":
        message = _PATTERNS.get(str(place[-1]), message)
    elif kind in _EXPECTED:
        message = _EXPECTED[kind].format(**error.get("ctx", {}))
    message = message.replace("Input should", "must").replace("String should", "must")
    return f"{subject}: {message}, but is {reprlib.repr(error['input'])}"


def unknown_key(place: Sequence[int | str]) -> str:
    """One line about a key at `place` (its group, then its name, ...) that no setting has."""
    *above, key = map(str, place)
    valid = _keys_at(place[:-1])
    prefix = "".join(f"{part}." for part in above)
    elsewhere = [f"{group}.{name}" for group, name, _ in every_setting() if name == key]
    near = elsewhere or [prefix + name for name in difflib.get_close_matches(key, valid, n=1)]
    hint = f"did you mean `{near[0]}`?" if near else f"valid here: {', '.join(valid)}"
    return f"unknown setting `{prefix}{key}`; {hint}"


def _keys_at(place: Sequence[Any]) -> list[str]:
    """The keys that are valid at a place of the configuration."""
    if len(place) > 1:
        return list(ModelSource.model_fields)  # of an entry of `store.models`, the only list
    if not place:
        return list(ServerSettings.model_fields)
    return [name for group, name, _ in every_setting() if group == place[0]]
