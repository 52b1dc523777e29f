"""Random models answer as tabpfn does, each row alone and in company. `differential.py` compares more by itself."""

from __future__ import annotations

import pytest
from differential import Workshop, compare
from drawn_models import draw

SEEDS = (*range(2, 12), 6697, 6724)
"""The last two are regressors with nearly empty bars beside a quantile."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("differential"))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_model_answers_as_tabpfn_does(seed: int, workshop: Workshop) -> None:
    drawing = draw(seed)
    verdict = compare(drawing, workshop)
    assert verdict.outcome in ("equal", "unfit"), f"{verdict.outcome}: {verdict.detail}\n{drawing}"
