"""What the launcher says of its replicas: their log on its standard error, and a line when one is lost or replaced."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.edges.ray import replica_log
from serve.edges.ray.replica_watch import ReplicaWatch, replicas_in
from serve.telemetry.launcher_log import LOG_PIPE, PACKAGE, REPLICA_NAME, write_to_launcher


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    logger = logging.getLogger(PACKAGE)
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_a_replicas_lines_come_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger(PACKAGE).setLevel(logging.INFO)
    with replica_log.forwarding() as variables:
        write_to_launcher({**variables, REPLICA_NAME: "r1"})
        logging.getLogger("serve.replica.predictor").info("loading model %s\nsecond line", "fraud")
        logging.getLogger("serve.replica.predictor").debug("not at this level")
        logging.getLogger("serve.replica.predictor").info("x" * 10_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("INFO serve.replica.predictor (replica r1): loading model fraud")
    assert lines[1] == "second line"
    assert [len(line) for line in lines[2:]] == [4095], "a longer line would not be written whole"


def test_a_full_pipe_holds_up_no_replica(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR)
    write_to_launcher({LOG_PIPE: f"{logging.INFO}:{path}", REPLICA_NAME: "r1"})
    for _ in range(1_000):
        logging.getLogger("serve.replica").info("y" * 4_000)
    assert os.read(reader, 30)
    os.close(reader)


def test_a_launcher_that_is_gone_is_no_error(tmp_path: Path) -> None:
    write_to_launcher({})
    write_to_launcher({LOG_PIPE: f"{logging.INFO}:{tmp_path / 'absent'}"})
    assert not logging.getLogger(PACKAGE).handlers


def test_a_death_and_its_replacement_are_one_line_each() -> None:
    watch = ReplicaWatch(2)
    states = [("RUNNING", 2), ("RUNNING", 1), ("UNHEALTHY", 1), ("RUNNING", 2), ("RUNNING", 2)]
    lines = [line for status, running in states for line in watch.observe(status, running, "")]
    assert lines == [
        (logging.WARNING, "a replica died or failed its health checks: 1 of 2 running; Ray starts another"),
        (logging.WARNING, "a new replica is ready: 2 of 2 running"),
    ]


def test_a_refused_configuration_is_one_line_although_ray_then_lists_no_deployment() -> None:
    message = "Traceback (most recent call last):\nserve.core.errors.StartupError: this replica listens itself\n"
    # as Ray 2.60 answers then
    refused = SimpleNamespace(status="DEPLOY_FAILED", message=message, deployments={})
    watch = ReplicaWatch(1)
    lines = [
        line for _ in range(2) for line in watch.observe(refused.status, *replicas_in(refused, "TabPFNDeployment"))
    ]
    assert lines == [(logging.ERROR, "the new configuration was refused: this replica listens itself")]


def test_a_new_configuration_is_no_fault_unless_it_is_refused() -> None:
    watch = ReplicaWatch(2)
    lines = [line for status, running in [("DEPLOYING", 1), ("RUNNING", 2)]
             for line in watch.observe(status, running, "")]  # fmt: skip
    assert {level for level, _ in lines} == {logging.INFO}
    message = "Traceback (most recent call last):\n  File x\nserve.core.errors.StartupError: the port is taken\n"
    refused = [line for _ in range(2) for line in watch.observe("DEPLOY_FAILED", 2, message)]
    assert refused == [(logging.ERROR, "the new configuration was refused: the port is taken")]
