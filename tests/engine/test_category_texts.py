"""A JSON number or flag meets its category, whatever program wrote the category's text."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.core import Column, ColumnKind, QueryTable
from serve.engine.category_texts import number_aliases, shortest_text, unmet_texts
from serve.engine.coding import Coding
from serve.engine.row_encoder import RowEncoder


def met(categories: list[str], cell: Any) -> str | None:
    """The category that a cell meets; None for unknown."""
    coding = Coding(codes={text: float(code) for code, text in enumerate(categories)})
    encoder = RowEncoder([Column("c", ColumnKind.CATEGORY)], [coding])
    ((code,),) = encoder.encode(QueryTable.from_records([{"c": cell}])).tolist()
    return None if code == -1 else categories[int(code)]


@pytest.mark.parametrize(
    ("categories", "cell", "expected"),
    [
        # the text of the same number
        (["7995.0", "8000.0"], 7995, "7995.0"),
        (["7995.0", "8000.0"], 7995.0, "7995.0"),
        (["7995.00"], 7995, "7995.00"),
        (["1e+22"], 1e22, "1e+22"),
        (["1e+22"], 10**22, "1e+22"),
        (["1E5"], 100_000, "1E5"),
        (["0.10"], 0.1, "0.10"),
        (["1e-7"], 1e-07, "1e-7"),
        (["-0.0"], 0, "-0.0"),
        (["-0.0"], -0.0, "-0.0"),
        (["-0"], 0.0, "-0"),
        (["True", "False"], True, "True"),
        (["True", "False"], False, "False"),
        (["TRUE"], True, "TRUE"),
        # the shortest text wins, then Python's, then nothing
        (["7995.0", "7995"], 7995.0, "7995"),
        (["7995", "7995.0"], 7995, "7995"),
        (["7995.00", "7995.0"], 7995, "7995.0"),
        (["7995.00", "7995.000"], 7995, None),
        (["True", "true"], True, "true"),
        (["TRUE", "True"], True, "True"),
        (["TRUE", "tRUE"], True, None),
        # names that look like numbers
        (["007"], 7, None),
        (["+5"], 5, None),
        (["1_000"], 1000, None),
        ([" 5"], 5, None),
        ([".5"], 0.5, None),
        (["5."], 5, None),
        (["\u0665"], 5, None),
        (["0x10"], 16, None),
        (["NaN", "inf"], 0, None),
        # a flag is no number
        (["1.0", "0.0"], True, None),
        (["1", "0"], False, None),
        (["True"], 1, None),
        # strings meet equal strings only
        (["7995.0"], "7995", None),
        (["7995.0"], "7995.0", "7995.0"),
        (["True"], "true", None),
        # exact beyond 2^53, where two numbers have one float
        (["9007199254740993"], 9007199254740993, "9007199254740993"),
        (["9007199254740992"], 9007199254740993, None),
        (["9007199254740992.0"], 9007199254740993, None),
        (["9007199254740992.0"], 9007199254740992, "9007199254740992.0"),
        (["1e400"], 1e22, None),
        (["9" * 300], int("9" * 300), "9" * 300),
        (["9" * 5000, "5.0"], 5, "5.0"),
    ],
)  # fmt: skip
def test_a_cell_meets_its_category(categories: list[str], cell: Any, expected: str | None) -> None:
    assert met(categories, cell) == expected
    assert met(categories[::-1], cell) == expected


NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)


@given(NUMBERS | st.booleans())
def test_a_value_meets_what_python_and_json_write_for_it(value: float | bool) -> None:
    assert met([str(value)], value) == str(value)
    assert met([json.dumps(value)], value) == json.dumps(value)
    as_float = repr(float(value))
    if not isinstance(value, bool) and int(value) == float(value) and float(as_float) == value:
        assert met([as_float], value) == as_float


@given(st.lists(st.text("0123456789.eE+-Trufals", max_size=6), max_size=6), NUMBERS | st.booleans())
def test_a_value_meets_no_other_value(categories: list[str], value: float | bool) -> None:
    found = met(categories, value) if len(set(categories)) == len(categories) else None
    if found is not None:
        assert (found.lower() == str(value).lower()) if isinstance(value, bool) else float(found) == value


def test_what_only_a_string_meets_is_named() -> None:
    texts = ["007", "+5", "7995", "7995.0", "5.00", "5.000", "True", "true", "9.0", "DE", "NaN", "inf", "1e400", ""]
    assert unmet_texts(texts) == ["+5", "007", "5.00", "5.000", "7995.0", "True"]
    assert number_aliases(texts) == {"9": "9.0"}


def test_a_number_that_json_cannot_bring_has_no_text() -> None:
    with pytest.raises(ValueError, match="infinite"):
        shortest_text(math.inf)


def test_numpys_numbers_have_pythons_texts() -> None:
    assert met(["0.1"], np.float64(0.1)) == "0.1"
    assert met(["3"], np.float64(3)) == "3"
