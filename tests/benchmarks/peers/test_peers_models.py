"""The demo model behind a peer answers correctly with tabpfn's engine and with the compiled engine."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.peers import models
from benchmarks.peers.records import NUM_FRAUD, NUM_HONEST, draw_transactions
from benchmarks.peers.systems import TABPFN, TOLERANCES
from training.cards import FEATURES


def test_transactions_are_half_fraud_and_always_the_same() -> None:
    records = draw_transactions()
    assert len(records) == NUM_FRAUD + NUM_HONEST
    assert all(list(record) == list(FEATURES) for record in records)
    assert records == draw_transactions()
    assert any(record["distance_km"] is None for record in records)


@pytest.mark.slow
def test_both_backends_answer_alike() -> None:
    records = draw_transactions()[:12]
    exact, compiled, usual = (models.load(kind, 1)(records) for kind in ("tabpfn-float32", "compiled", "tabpfn"))
    np.testing.assert_allclose(compiled, exact, atol=1e-5)
    np.testing.assert_allclose(usual, exact, atol=TOLERANCES[TABPFN])
    np.testing.assert_allclose(np.sum(exact, axis=1), 1)
    assert np.ptp([probabilities[1] for probabilities in exact]) > 0.3  # mixed-up answers would be seen


def test_requests_are_answered_by_one_call_each_with_its_own_rows() -> None:
    calls: list[int] = []

    def predict(records: models.Records) -> models.Probabilities:
        calls.append(len(records))
        return [[float(record["amount"])] for record in records]

    requests = [[{"amount": 1}], [{"amount": 2}, {"amount": 3}], []]
    assert models.predict_all(predict, requests) == [[[1.0]], [[2.0], [3.0]], []]
    assert calls == [3]
