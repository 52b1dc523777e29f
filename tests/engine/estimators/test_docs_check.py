"""The check of docs/models.md, by which a user compares the server with a pickle, shows equality."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from estimators import DEMO, engine, imported, records, served
from estimators import table as make_table
from tabpfn import TabPFNClassifier

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


@pytest.mark.filterwarnings("ignore:Column.*have a dtype at predict time that differs")
@pytest.mark.parametrize("fit_mode", ["fit_preprocessors", "fit_with_cache"])
def test_the_check_shows_equality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit_mode: str) -> None:
    (check,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "kept" in code]
    rows = make_table()
    labels = (rows["amount"].fillna(0) > 20).astype(int)
    kept = TabPFNClassifier(model_path=str(DEMO), device="cpu", n_estimators=2, random_state=3, fit_mode=fit_mode)
    if fit_mode == "fit_with_cache":  # as the page says of a file that keeps its caches
        kept.set_params(inference_precision=torch.float32)
    (tmp_path / "tabpfn_model.pkl").write_bytes(pickle.dumps(kept.fit(rows, labels)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"rows": rows, "labels": labels}
    exec(compile(check, str(PAGE), "exec"), names)
    using = engine()
    context = using.fit(imported(tmp_path / "tabpfn_model.pkl", tmp_path / "made"))
    got = served(using, context, records(rows[:10]))
    np.testing.assert_allclose(got, np.concatenate(names["answers"]), rtol=0, atol=1e-6)
