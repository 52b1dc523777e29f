"""The worker's log reaches the launcher under Ray, where the output of a replica ends in a file of Ray's."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from fake_worker import UNEXPECTED, WORKER, numbers

from serve.core import Batch
from serve.core.errors import EngineError
from serve.engine.worker.client import WorkerEngine
from serve.settings import EngineSettings
from serve.telemetry.launcher_log import LOG_PIPE, REPLICA_NAME


def test_a_failure_of_the_engine_is_written_to_the_launchers_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR)
    monkeypatch.setenv(LOG_PIPE, f"{logging.INFO}:{path}")
    monkeypatch.setenv(REPLICA_NAME, "r1")
    worker = WorkerEngine(EngineSettings(), 8, WORKER)
    context = worker.fit(numbers())
    with pytest.raises(EngineError):
        worker.predict(Batch(context, np.full((1, 2), UNEXPECTED)))
    worker.close()
    lines = os.read(reader, 65_536).decode().splitlines()
    os.close(reader)
    assert lines[0].endswith("ERROR serve.engine.worker.server (replica r1): a call of the engine failed:")
    assert lines[-1] == "LookupError: something of a package's"
