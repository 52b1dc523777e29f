"""A worker that sends what no worker should: the replica loses the device, runs no code and needs no memory for it."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hostile_worker
import numpy as np
import psutil
import pytest
from fake_worker import numbers
from hostile_worker import HARMED, TO_FIT, TO_PREDICT, TO_START

from serve.core import Batch
from serve.core.errors import DeviceLost, EngineError
from serve.engine.worker.client import WorkerEngine
from serve.settings import EngineSettings

_MAX_BYTES = 16 * 2**20
REASONS = {
    "header that ends early": "ended",
    "body that ends early": "ended",
    "a coding short": "described its fitted context wrongly",
    "rows of another width": "described its fitted context wrongly",
    "codes for no values": "described its fitted context wrongly",
}
"""Why the device is lost; a malformed frame for every other answer."""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(answer: str) -> WorkerEngine:
    return WorkerEngine(EngineSettings(), 8, (hostile_worker.__file__, answer))


@contextmanager
def unharmed(answer: str) -> Iterator[None]:
    """The block raises DeviceLost with its reason; no code of a pickle runs, and memory stays as it was."""
    tracemalloc.start()
    try:
        with pytest.raises(DeviceLost, match=REASONS.get(answer, "malformed frame")):
            yield
        assert tracemalloc.get_traced_memory()[1] < _MAX_BYTES
    finally:
        tracemalloc.stop()
    assert not Path(HARMED).exists()


@pytest.mark.parametrize("answer", TO_START)
def test_a_start_fails(answer: str) -> None:
    before = psutil.Process().children()
    with unharmed(answer):
        start(answer)
    assert psutil.Process().children() == before


@pytest.mark.parametrize("answer", TO_FIT)
def test_a_fit_fails_and_the_worker_is_killed(answer: str) -> None:
    engine = start(answer)
    with unharmed(answer):
        engine.fit(numbers())
    assert engine.lost
    with pytest.raises(DeviceLost):
        engine.fit(numbers())
    engine.close()


@pytest.mark.parametrize(
    "answer",
    [
        "more outputs than were asked for",
        "body that ends early",
        "preparation of no length",
        "preparation that ended before it began",
    ],
)
def test_a_batch_fails_and_the_worker_is_killed(answer: str) -> None:
    engine = start(answer)
    context = engine.fit(numbers())
    with unharmed(answer):
        engine.predict(Batch(context, np.zeros((3, 2))))
    assert engine.lost
    engine.close()


def test_a_wrong_answer_fails_both_batches_in_flight() -> None:
    answer = "wrong answer behind two calls"
    assert answer in TO_PREDICT
    engine = start(answer)
    context = engine.fit(numbers())
    first, second = (engine.launch(Batch(context, np.zeros((3, 2)))) for _ in range(2))
    with unharmed(answer):
        first.collect()
    with pytest.raises(DeviceLost, match="signal 9"):
        second.collect()
    with pytest.raises(DeviceLost, match="signal 9"):
        engine.launch(Batch(context, np.zeros((3, 2))))
    engine.close()


def test_the_preparation_took_no_longer_than_the_call() -> None:
    assert "endless preparation" in TO_PREDICT
    engine = start("endless preparation")
    launched = engine.launch(Batch(engine.fit(numbers()), np.zeros((3, 2))))
    launched.collect()
    assert 0 < launched.prepared_s < math.inf
    engine.close()


@pytest.mark.parametrize("answer", ["error of an unknown class", "error that lacks its attributes"])
def test_an_error_of_no_known_class_is_an_engine_error(answer: str) -> None:
    assert answer in TO_PREDICT
    engine = start(answer)
    context = engine.fit(numbers())
    with pytest.raises(EngineError, match="of the worker's choice") as failure:
        engine.predict(Batch(context, np.zeros((3, 2))))
    assert type(failure.value) is EngineError
    engine.close()


def test_the_bomb_does_harm_where_it_is_unpickled() -> None:
    pickle.loads(TO_START["pickle"])
    assert Path(HARMED).exists()
