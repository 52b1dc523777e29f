"""An import says where tabpfn's own answers differ without its KV cache, and by how much; the model is served."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from estimators import answers, engine, imported, outcome, records, served
from models import write_tiny
from tabpfn import TabPFNClassifier

from serve.core import Task
from serve.engine.checks.parity import canary_rows, check_parity


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    texts = np.array(["x" if i % 7 else None for i in range(60)], dtype=object)
    return pd.DataFrame(
        {
            "usual": rng.normal(size=60),
            "one": np.where(np.arange(60) % 7 == 0, np.nan, 2.5),
            "text": texts,
            "close": 1e9 + rng.integers(0, 30, 60) * 1e-5,
            "other": rng.normal(size=60),
        }
    )


def fit(checkpoint: Path, fit_mode: str) -> Any:
    rows = table()
    return TabPFNClassifier(
        model_path=str(checkpoint), device="cpu", n_estimators=2, random_state=3, fit_mode=fit_mode,
        inference_precision=torch.float32, kv_cache_precision="auto",
    ).fit(rows, (rows["usual"] + rows["other"] > 0).astype(int))  # fmt: skip


def asked() -> pd.DataFrame:
    rows = table()[:6].reset_index(drop=True)
    rows.loc[1, "one"] = 7.0
    rows.loc[2, "text"] = "y"
    rows.loc[3, "close"] = np.nan
    rows.loc[4, "other"] = np.nan
    return rows


@pytest.mark.parametrize("fit_mode", ["fit_preprocessors", "low_memory"])
@pytest.mark.parametrize("architecture", ["tabpfn_v2", "tabpfn_v2_5", "tabpfn_v2_6"])
def test_the_import_names_the_columns_and_the_model_answers_as_with_the_cache(
    tmp_path: Path, architecture: str, fit_mode: str
) -> None:
    suffix = architecture.removeprefix("tabpfn_").replace("_", ".")
    checkpoint = write_tiny(architecture, tmp_path / f"tiny-{suffix}.safetensors", Task.CLASSIFICATION)
    estimator = fit(checkpoint, fit_mode)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(estimator))
    (note,) = outcome(tmp_path / "model.pkl", tmp_path / "made")["facts"]["notes"]
    for name in ("one", "text", "close"):
        assert f"{name!r} (by up to 0.0" in note or name == "text"  # of which v2.5 and v2.6 differ by less
    assert "'usual'" not in note
    assert "'other'" not in note
    assert f"fit_mode={fit_mode!r}" in note
    assert not outcome(_pickled(fit(checkpoint, "fit_with_cache"), tmp_path), tmp_path / "cached")["facts"]["notes"]

    using = engine()
    context = using.fit(imported(tmp_path / "model.pkl", tmp_path / "made"))
    check_parity(using, context, canary_rows(context.encode_context()), 1e-5)
    rows = asked()
    got = served(using, context, records(rows))
    np.testing.assert_allclose(got, answers(fit(checkpoint, "fit_with_cache"), rows), rtol=0, atol=1e-6)
    difference = np.abs(got - answers(estimator, rows)).max(axis=1)
    assert difference[[1, 3]].max() > 1e-4, "the file's own estimator answers otherwise"
    assert difference[[0, 4, 5]].max() < 1e-6, "but not where a row holds what the context holds"


def _pickled(estimator: Any, folder: Path) -> Path:
    path = folder / "cached.pkl"
    path.write_bytes(pickle.dumps(estimator))
    return path


def test_a_large_context_is_named_without_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.engine.estimators.differences._MAX_OPERATIONS", 1.0)
    checkpoint = write_tiny("tabpfn_v2", tmp_path / "tiny-v2.safetensors", Task.CLASSIFICATION)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(fit(checkpoint, "fit_preprocessors")))
    (note,) = outcome(tmp_path / "model.pkl", tmp_path / "made")["facts"]["notes"]
    assert "'one', 'text', 'close'. The context is too large to measure it." in note


def test_no_note_where_tabpfns_modes_agree(tmp_path: Path) -> None:
    checkpoint = write_tiny("tabpfn_v3_5", tmp_path / "tiny-v3.5.safetensors", Task.CLASSIFICATION)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(fit(checkpoint, "fit_preprocessors")))
    assert outcome(tmp_path / "model.pkl", tmp_path / "made")["facts"]["notes"] == []
