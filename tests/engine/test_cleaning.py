"""Each cell has the library's answer: that of its estimator, asked for the row alone through a DataFrame."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from models import write_tiny
from tabpfn import TabPFNClassifier

from serve.core import Batch, Column, ColumnKind, Context, EnsembleOptions, ModelDefinition, QueryTable, Task
from serve.core.errors import InvalidInput, InvalidModel
from serve.engine import cleaning, context_fit
from serve.engine.engine import TabPFNContext, TabPFNEngine

NUM_ROWS = 120
RNG = np.random.default_rng(0)
AMOUNTS: list[Any] = [round(float(amount), 3) for amount in RNG.normal(size=NUM_ROWS)]
SHARES: list[Any] = [round(float(share), 3) for share in RNG.random(NUM_ROWS)]
LABELS = [str(int(amount > 0)) for amount in AMOUNTS]


def cycle(*cells: Any) -> list[Any]:
    return [cells[row % len(cells)] for row in range(NUM_ROWS)]


def model(
    checkpoint: Path, cells: Mapping[str, Sequence[Any]], categories: Sequence[str] = (), labels: Sequence[str] = LABELS
) -> ModelDefinition:
    columns = tuple(Column(name, ColumnKind.CATEGORY if name in categories else ColumnKind.NUMBER) for name in cells)
    return ModelDefinition(
        name="cells",
        version="1",
        context=Context(Task.CLASSIFICATION, columns, cells, labels),
        checkpoint_path=str(checkpoint),
        checkpoint_name="random",
        licence="some",
        options=EnsembleOptions(num_members=2),
    )


def frame(definition: ModelDefinition, cells: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    kinds = {column.name: column.kind for column in definition.context.columns}
    types = {name: "float64" if kind is ColumnKind.NUMBER else "object" for name, kind in kinds.items()}
    return pd.DataFrame({name: pd.Series(list(column), dtype=types[name]) for name, column in cells.items()})


class Library:
    """The estimator of a definition, fitted by tabpfn alone."""

    def __init__(self, definition: ModelDefinition) -> None:
        self._definition = definition
        context = definition.context
        positions = [i for i, column in enumerate(context.columns) if column.kind is ColumnKind.CATEGORY]
        self.estimator = TabPFNClassifier(
            model_path=definition.checkpoint_path, device="cpu", n_estimators=2, random_state=0,
            fit_mode="fit_with_cache", inference_precision=torch.float32, kv_cache_precision="auto",
            categorical_features_indices=positions,
        )  # fmt: skip
        self.estimator.fit(frame(definition, context.cells), np.asarray(context.target, dtype=object))

    def ask(self, record: Mapping[str, Any]) -> Any:
        row = frame(self._definition, {name: [cell] for name, cell in record.items()})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Column.*have a dtype at predict time that differs")
            return self.estimator.predict_proba(row)[0]


def ask(engine: TabPFNEngine, context: TabPFNContext, record: Mapping[str, Any]) -> Any:
    return engine.predict(Batch(context, context.encode(QueryTable.from_records([record]))))[0]


@pytest.fixture(scope="module")
def hashing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of v2, whose released recipe adds a fingerprint."""
    return write_tiny("tabpfn_v2", tmp_path_factory.mktemp("v2") / "tiny-v2.safetensors", Task.CLASSIFICATION)


# --- numbers that TabPFN takes for categories -------------------------------------------------------------------------

IDS = (123_456_789_012_345_678, 123_456_789_012_999_999, 400_000_000_000_000_001)
UNKNOWN_IDS = (
    IDS[0] + 10**6, IDS[2] + 10**6, float(np.nextafter(float(IDS[2]), np.inf)), float(np.nextafter(float(IDS[0]), 0)),
    -IDS[0], 2**53, 7, 3e38, -3e38, 0, True,
)  # fmt: skip


def test_an_unknown_id_of_eighteen_digits_is_unknown(engine: TabPFNEngine, checkpoint: Path) -> None:
    definition = model(checkpoint, {"amount": AMOUNTS, "terminal": cycle(*IDS)})
    context, library = engine.fit(definition), Library(definition)
    known = {round(float(ask(engine, context, {"amount": 0.5, "terminal": cell})[0]), 6) for cell in IDS}
    assert len(known) == len(IDS)
    for cell in (*IDS, *UNKNOWN_IDS):
        record = {"amount": 0.5, "terminal": cell}
        code = context.encode(QueryTable.from_records([record]))[0, 1]
        assert (code == -1) == (cell in UNKNOWN_IDS), cell
        np.testing.assert_allclose(ask(engine, context, record), library.ask(record), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        (2.0**53, 2.0**53 + 2, 1.0), (-(2.0**60), -(2.0**61), -(2.0**62)), (3e38, 1.0, -3e38), (5e-324, 0.0, 1.0),
        (-0.0, 1.0, 2.0), (float(np.finfo(np.float32).max), 1.0, 2.0), (1e20, 1e20 + 2**14, 1e20 - 2**14),
    ],
)  # fmt: skip
def test_every_number_but_the_known_ones_is_unknown(engine: TabPFNEngine, checkpoint: Path, values: Any) -> None:
    context = engine.fit(model(checkpoint, {"amount": AMOUNTS, "few": cycle(*values)}))
    asked = {neighbour for value in values for neighbour in (np.nextafter(value, np.inf), np.nextafter(value, -np.inf))}
    asked |= {value + 1 for value in values} | {-value for value in values} | set(values)
    for number in asked:
        if abs(number) <= np.finfo(np.float32).max:
            code = context.encode(QueryTable.from_records([{"amount": 0.5, "few": float(number)}]))[0, 1]
            assert (code >= 0) == (number in values), number


# --- the signs of zero ------------------------------------------------------------------------------------------------


def same_zero(definition: ModelDefinition, engine: TabPFNEngine, records: Sequence[Mapping[str, Any]]) -> TabPFNContext:
    """The fitted context, after each record had the library's answer."""
    context, library = engine.fit(definition), Library(definition)
    assert library.estimator.inference_config_.FINGERPRINT_FEATURE
    for record in records:
        np.testing.assert_allclose(
            ask(engine, context, record), library.ask(record), rtol=0, atol=1e-5, err_msg=str(record)
        )
    return context


def test_a_zero_beside_strings_has_no_sign(engine: TabPFNEngine, hashing: Path) -> None:
    cells = {"amount": AMOUNTS, "country": cycle("DE", "FR", "NL"), "share": SHARES}
    records = [
        {"amount": amount, "country": country, "share": share}
        for amount, share in [(-0.0, 0.25), (0.0, 0.25), (-0.0, -0.0), (0.5, -0.0), (-0.0, None)]
        for country in ("FR", "XX", None)
    ]
    same_zero(model(hashing, cells, ["country"]), engine, records)


def test_a_zero_among_numbers_keeps_its_sign(engine: TabPFNEngine, hashing: Path) -> None:
    cells = {"amount": AMOUNTS, "few": cycle(0.0, 1.0, 2.0), "share": SHARES, "same": [1.0] * NUM_ROWS}
    records = [
        {"amount": amount, "few": few, "share": share, "same": 7}
        for amount, few, share in [
            (-0.0, 1.0, 0.25),
            (0.0, 1.0, 0.25),
            (0.5, -0.0, 0.25),
            (0.5, 0.0, -0.0),
            (-0.0, 1.0, None),
        ]
    ]
    context = same_zero(model(hashing, cells), engine, records)
    signed, unsigned = (ask(engine, context, record) for record in records[:2])
    assert np.abs(signed - unsigned).max() > 1e-5, "without an effect of the sign the test proves nothing"


@pytest.mark.parametrize("with_strings", [True, False])
def test_zeros_of_the_context_are_compared_to_the_bit(
    engine: TabPFNEngine, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, with_strings: bool
) -> None:
    """Beside strings tabpfn keeps the sign in a column of fractions that it cleans at once, and drops it in a row."""
    other = {"country": cycle("DE", "FR", "NL")} if with_strings else {"share": SHARES}
    cells = {"amount": [-0.0, *AMOUNTS[1:7], 0.0, -0.0, *AMOUNTS[9:]], **other}
    definition = model(checkpoint, cells, ["country"])
    context = engine.fit(definition)
    zeros = context.encode_context()[[0, 7, 8], 0]
    np.testing.assert_array_equal(np.signbit(zeros), [not with_strings, False, not with_strings])
    learn = cleaning.learn_codings

    def turned(*args: Any) -> Any:
        return [replace(coding, keeps_zero_sign=with_strings) for coding in learn(*args)]

    monkeypatch.setattr(context_fit.cleaning, "learn_codings", turned)
    with pytest.raises(InvalidModel, match=r"context row 0, column 'amount': -?0\.0 and -?0\.0"):
        engine.fit(definition)


def test_every_nan_has_the_same_bits(engine: TabPFNEngine, checkpoint: Path) -> None:
    """A fingerprint hashes them."""
    context = engine.fit(model(checkpoint, {"amount": AMOUNTS, "share": SHARES}))
    strange = np.array([0xFFF8000000000000, 0x7FF8000000000123], np.uint64).view(np.float64)
    rows = context.encode(QueryTable.from_columns({"amount": [None, *strange], "share": np.array([*strange, 0.5])}))
    assert set(rows.view(np.int64)[np.isnan(rows)].tolist()) == {np.array(math.nan).view(np.int64).item()}


# --- numbers and flags that meet texts --------------------------------------------------------------------------------


def test_a_number_and_a_flag_have_the_answer_of_their_text(
    engine: TabPFNEngine, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells = {"amount": AMOUNTS, "code": cycle("7995.0", "8000.0", "1e+22", "007"), "flag": cycle("True", "False", None)}
    definition = model(checkpoint, cells, ["code", "flag"])
    with caplog.at_level(logging.WARNING, "serve.engine.cleaning"):
        context = engine.fit(definition)
    assert [record.getMessage() for record in caplog.records] == [
        "column 'code': its categories '007' look like numbers or flags, but no JSON number or flag meets them; "
        "send them as strings"
    ]
    library = Library(definition)
    answers = []
    for cell, text, flag in [
        (7995, "7995.0", True),
        (8000.0, "8000.0", False),
        (1e22, "1e+22", None),
        (7, "7", "true"),
    ]:
        answers.append(ask(engine, context, {"amount": 0.5, "code": cell, "flag": flag}))
        named = {True: "True", False: "False"}.get(flag, flag) if isinstance(flag, bool) else flag
        expected = library.ask({"amount": 0.5, "code": text, "flag": named})
        np.testing.assert_allclose(answers[-1], expected, rtol=0, atol=1e-5)
        # a float and a flag, as Python has them, meet the same texts in the library
        if isinstance(cell, float):
            np.testing.assert_allclose(library.ask({"amount": 0.5, "code": cell, "flag": flag}), expected, atol=1e-7)
    assert np.ptp(np.stack(answers), axis=0).max() > 1e-3


# --- empty columns, and labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [None, math.nan])
def test_a_number_column_without_a_number_takes_any_cell(engine: TabPFNEngine, checkpoint: Path, fill: Any) -> None:
    definition = model(checkpoint, {"amount": AMOUNTS, "empty": [fill] * NUM_ROWS})
    context, library = engine.fit(definition), Library(definition)
    expected = library.ask({"amount": 0.5, "empty": math.nan})
    row = pd.DataFrame({"amount": [0.5], "empty": pd.Series(["text"], dtype="object")})
    np.testing.assert_allclose(library.estimator.predict_proba(row)[0], expected, rtol=0, atol=1e-7)
    for cell in (None, "text", "", 5, 1e300, 10**20, True, "7"):
        np.testing.assert_allclose(ask(engine, context, {"amount": 0.5, "empty": cell}), expected, rtol=0, atol=1e-5)
    for cell in ([1], {}, math.inf):
        with pytest.raises(InvalidInput, match="row 0, column 'empty'"):
            context.encode(QueryTable.from_records([{"amount": 0.5, "empty": cell}]))


def test_a_string_in_an_empty_column_takes_the_signs_of_its_row(engine: TabPFNEngine, hashing: Path) -> None:
    definition = model(hashing, {"empty": [None] * NUM_ROWS, "amount": AMOUNTS, "none": [None] * NUM_ROWS})
    context, library = engine.fit(definition), Library(definition)
    records = [
        {"empty": first, "amount": -0.0, "none": last} for first in (None, "text", 5) for last in (None, "text", True)
    ]
    together = context.encode(QueryTable.from_records(records))[:, 1]
    for record, zero in zip(records, together, strict=True):
        row = pd.DataFrame({name: pd.Series([cell]) for name, cell in record.items()})
        row = row.astype({name: "float64" for name, cell in record.items() if not isinstance(cell, str)})
        expected = library.estimator.predict_proba(row)[0]
        np.testing.assert_allclose(ask(engine, context, record), expected, rtol=0, atol=1e-5, err_msg=str(record))
        assert np.signbit(zero) == ("text" not in record.values())


def test_labels_and_categories_that_end_in_nul_stay_apart(engine: TabPFNEngine, checkpoint: Path) -> None:
    """numpy's own strings lose the NUL, and made one class of the two."""
    labels = ["a" if amount > 0 else "a\0" for amount in AMOUNTS]
    definition = model(checkpoint, {"amount": AMOUNTS, "code": cycle("p", "p\0", "q")}, ["code"], labels)
    context, library = engine.fit(definition), Library(definition)
    assert context.classes == ("a", "a\0")
    for code in ("p", "p\0", "p\0\0", "q"):
        record = {"amount": 0.5, "code": code}
        np.testing.assert_allclose(ask(engine, context, record), library.ask(record), rtol=0, atol=1e-5)
    codes = context.encode(QueryTable.from_columns({"amount": [0.5] * 3, "code": ["p", "p\0", "p\0\0"]}))[:, 1]
    assert codes.tolist() == [0.0, 1.0, -1.0]
