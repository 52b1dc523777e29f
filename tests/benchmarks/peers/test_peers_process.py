"""A system's processes are started, found, frozen and counted, and none is left, not even a detached child."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.online.errors import StartFailed
from benchmarks.online.wire import Wire
from benchmarks.peers.process import Process, free_port

STUB = str(Path(__file__).parent / "stub_peer.py")
REQUEST = Wire().request("h", [{"amount": 2.0}])


@pytest.fixture
def stubs() -> Iterator[list[Process]]:
    """A list; the processes in it are stopped after the test."""
    made: list[Process] = []
    yield made
    for process in made:
        process.stop()


def stub(folder: Path, engine: str = "tabpfn") -> Process:
    port = free_port()
    command = [sys.executable, STUB, "--port", str(port), "--engine", engine]
    return Process("stub", command, {"GREETING": "hello"}, port, folder / "log", stop_s=10)


async def test_all_of_it_is_found_frozen_thawed_and_stopped(tmp_path: Path, stubs: list[Process]) -> None:
    process = stub(tmp_path)
    stubs.append(process)
    assert await process.start(REQUEST) > 0
    members = process.members()
    assert len(members) == 2  # the child too, which left the session
    assert all(member.environ()["GREETING"] == "hello" for member in members)
    assert process.cpu_s() > 0
    assert process.rss_bytes() > 2**20
    process.freeze()
    assert {member.status() for member in members} == {psutil.STATUS_STOPPED}
    process.thaw()
    assert psutil.STATUS_STOPPED not in {member.status() for member in members}
    process.freeze()
    process.stop()
    assert process.num_killed == 1  # the child did not end by itself
    assert not any(member.is_running() for member in members)
    process.stop()  # again is no fault


async def test_a_system_that_ends_is_told_with_its_last_words(tmp_path: Path, stubs: list[Process]) -> None:
    process = stub(tmp_path, engine="broken")
    stubs.append(process)
    with pytest.raises(StartFailed, match="ended with 1: it is broken"):
        await process.start(REQUEST)


def test_nothing_is_stopped_that_never_started(tmp_path: Path) -> None:
    process = stub(tmp_path)
    process.stop()
    assert process.members() == []
