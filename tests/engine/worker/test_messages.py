"""Errors and codings become messages and come back as they were."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.core import errors
from serve.core.errors import EngineError, InvalidInput, Overloaded, ServeError, StartupError
from serve.engine.coding import Coding
from serve.engine.worker import wire
from serve.engine.worker.messages import ColumnCoding, describe_coding, describe_error, restore_coding, restore_error

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServeError)]
ATTRIBUTES: dict[type[ServeError], dict[str, Any]] = {
    InvalidInput: {"code": "unknown_column", "row": 3, "column": "naïve\n\x00"},
    Overloaded: {"retry_after_s": 1.5, "reason": "rows"},
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


def crossed(error: ServeError) -> ServeError:
    message = describe_error(error)
    header = wire.encode(message)[16:]
    return restore_error(wire.ANSWERED.decode(header))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_crosses_with_all_that_it_holds(kind: type[ServeError]) -> None:
    error = kind("what is wrong, where", **ATTRIBUTES.get(kind, {}))
    again = crossed(error)
    assert type(again) is kind
    assert (str(again), again.code, vars(again)) == (str(error), error.code, vars(error))


def test_invalid_input_without_a_place_crosses() -> None:
    assert vars(crossed(InvalidInput("x"))) == vars(InvalidInput("x"))


def test_a_class_from_elsewhere_crosses_as_its_nearest_base() -> None:
    class Stale(StartupError):
        pass

    assert type(crossed(Stale("old"))) is StartupError


def test_half_a_surrogate_pair_in_an_error_crosses_as_its_escape() -> None:
    again = crossed(InvalidInput("column '\ud800'", column="\ud800"))
    assert isinstance(again, InvalidInput)
    assert (str(again), again.column) == ("column '\\ud800'", "\\ud800")


def test_only_classes_of_errors_come_out() -> None:
    for name in ("SystemExit", "Overloaded", "InvalidInput", "annotations", ""):
        assert type(restore_error(wire.ANSWERED.decode(wire.encode(_failed(name))[16:]))) is EngineError  # type: ignore[arg-type]


def _failed(name: str) -> Any:
    from serve.engine.worker.messages import Failed

    return Failed(name, "x")


@given(
    st.none() | st.dictionaries(st.none() | TEXT | st.floats(allow_nan=False), st.floats()),
    st.floats(), st.floats(), st.none() | st.floats(), st.booleans(),
)  # fmt: skip
def test_a_coding_crosses(codes: Any, missing: float, unknown: float, constant: float | None, signs: bool) -> None:
    again = restore_coding(describe_coding(Coding(codes, missing, unknown, constant, signs)))
    assert again.keeps_zero_sign == signs
    assert (again.codes is None) == (codes is None)
    assert list(again.codes or ()) == list(codes or ())
    np.testing.assert_array_equal(list((again.codes or {}).values()), list((codes or {}).values()))
    np.testing.assert_array_equal([again.missing, again.unknown], [missing, unknown])
    assert (again.constant is None) == (constant is None)
    assert constant is None or again.constant == constant or math.isnan(constant)


def test_the_limits_of_a_column_cross() -> None:
    coding = Coding(limits=(-1.5, 3.4e38))
    (again,) = msgspec.msgpack.decode(msgspec.msgpack.encode([describe_coding(coding)]), type=list[ColumnCoding])
    assert restore_coding(again).limits == coding.limits
    assert restore_coding(describe_coding(Coding())).limits is None


def test_numbers_of_numpy_become_pythons() -> None:
    described = describe_coding(Coding({np.float64(1.5): np.float64(0), "a": 1.0}, np.float64(2), 3.0, np.float64(4)))
    numbers = [*(described.values or ()), *(described.codes or ()), described.missing, described.constant]
    assert {type(number) for number in numbers} == {float, str}
