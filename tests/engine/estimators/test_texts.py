"""Columns of text with missing cells, which tabpfn replaces by a text of its own, `__MISSING__`."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from estimators import DEMO, answers, engine, imported, outcome, records, served
from models import definition
from tabpfn import TabPFNClassifier

from serve.core import QueryTable
from serve.engine import cleaning, tabpfn_estimators
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.engine import TabPFNContext
from serve.engine.row_encoder import RowEncoder

_ROWS = np.arange(60)
COLUMNS: dict[str, list[Any]] = {
    "text": [f"note {i}" for i in _ROWS],
    "text with missing cells": [None if i % 7 == 0 else f"note {i}" for i in _ROWS],
    "text that spells missing": ["__MISSING__" if i % 7 == 0 else f"note {i}" for i in _ROWS],
    "numbers as text": [None if i % 7 == 0 else f"{i}.5" for i in _ROWS],
    "few numbers as text": [None if i % 7 == 0 else f"{i % 4}" for i in _ROWS],
    "categories": [None if i % 7 == 0 else "xyz"[i % 3] for i in _ROWS],
    "categories that spell missing": ["__MISSING__" if i % 7 == 0 else "xyz"[i % 3] for i in _ROWS],
}


@pytest.mark.filterwarnings("ignore:These columns look like free text")
@pytest.mark.parametrize(
    ("name", "is_categorical"), [*((name, False) for name in COLUMNS), ("text that spells missing", True)]
)
def test_a_missing_text_is_answered_as_by_the_estimator(
    tmp_path: Path, checkpoint: Path, name: str, is_categorical: bool
) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"amount": rng.normal(size=60), "cell": np.array(COLUMNS[name], dtype=object)})
    estimator = TabPFNClassifier(
        model_path=str(checkpoint), device="cpu", n_estimators=1, random_state=3, inference_precision=torch.float32,
        kv_cache_precision="auto", fit_mode="fit_with_cache",
        categorical_features_indices=[1] if is_categorical else None,
    ).fit(table, (table["amount"] + np.arange(60) % 3 > 1).astype(int))  # fmt: skip
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(estimator))
    using = engine()
    model = imported(tmp_path / "model.pkl", tmp_path / "made")
    context = using.fit(model)
    check_parity(using, context, canary_rows(context.encode_context()), 1e-5)
    asked = ["note 2", None, "__MISSING__", "unseen", "3", "4.5", "x"]
    rows = pd.DataFrame({"amount": 0.3, "cell": np.array(asked, dtype=object)})
    np.testing.assert_allclose(served(using, context, records(rows)), answers(estimator, rows), rtol=0, atol=1e-6)
    assert model.example is not None
    assert model.example["cell"] != "__MISSING__", "the placeholder is no value to show"


def test_texts_that_spell_missing_differ_from_unknown_ones(tmp_path: Path) -> None:
    """So the test above cannot pass by taking both for the same."""
    table = pd.DataFrame({"amount": _ROWS * 0.1, "cell": np.array(COLUMNS["numbers as text"], dtype=object)})
    estimator = TabPFNClassifier(
        model_path=str(DEMO), device="cpu", n_estimators=2, inference_precision=torch.float32, fit_mode="fit_with_cache"
    ).fit(table, _ROWS % 2)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(estimator))
    assert outcome(tmp_path / "model.pkl", tmp_path / "made")["facts"]["columns"][1]["kind"] == "category"
    rows = pd.DataFrame({"amount": 0.3, "cell": np.array(["__MISSING__", None, "unseen"], dtype=object)})
    spelt, missing, unseen = answers(estimator, rows)
    np.testing.assert_allclose(spelt, missing, rtol=0, atol=1e-7)
    assert np.abs(spelt - unseen).max() > 1e-3


def test_a_contexts_cell_that_spells_missing_is_encoded_as_by_tabpfn(
    classifier: TabPFNContext, checkpoint: Path
) -> None:
    """A context's texts are declared categorical, so tabpfn takes this one for a category that it does not know."""
    model = definition(checkpoint)
    raw = RowEncoder(model.context.columns).read(QueryTable.from_columns(dict(model.context.cells)))
    frame = cleaning.context_frame(model, raw)
    estimator = tabpfn_estimators.build_estimator(model, frame, "fit_preprocessors", "cpu", "float32")
    for name in ("note", "country"):
        row = QueryTable.from_records([dict(model.example or {}) | {name: "__MISSING__"}])
        (given,) = classifier.encode(row)
        (expected,) = cleaning.clean(estimator, cleaning.context_frame(model, classifier.encoder.read(row)))
        np.testing.assert_array_equal(given, expected)
