"""Containers of the image under test, with the restrictions of an orchestrator, and load to send while they stop.

The variable `TEST_IMAGE` names the image (`make test-images` builds it and sets the variable), `CONTAINER_ENGINE` is
podman or docker. Containers use the host's network on free ports, so that no port has to be published: Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from edge_harness import Caller, predict_request
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
IMAGE = os.environ.get("TEST_IMAGE", "")
ENGINE = os.environ.get("CONTAINER_ENGINE") or ("podman" if shutil.which("podman") else "docker")

HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "4g")
SHM = ("--shm-size", "1g")

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60
"""The stop timeout that docs/containers.md recommends."""


def engine(*arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run the container engine's command line and return what it printed."""
    return subprocess.run([ENGINE, *arguments], capture_output=True, text=True, timeout=timeout_s)


def smoke(url: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/smoke against a server."""
    return subprocess.run([sys.executable, "-I", ROOT / "scripts" / "smoke", url], capture_output=True, text=True)


def own_address() -> str:
    """An address of this machine other than the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        unsent.connect(("192.0.2.1", 9))  # a route is looked up, nothing is sent
        return str(unsent.getsockname()[0])


class Container:
    """A container that starts at once and is removed at the end of the `with` block."""

    def __init__(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        hardened: Sequence[str] = HARDENED,
        host: str = "127.0.0.1",
    ) -> None:
        self.name = f"tabpfn-serve-test-{uuid.uuid4().hex[:12]}"
        self.port = free_port()
        self.host = host
        self.url = f"http://{host}:{self.port}"
        settings = {"TABPFN_SERVE_PORT": str(self.port), **(environment or {})}
        given = [part for name, value in settings.items() for part in ("--env", f"{name}={value}")]
        self.started_at = time.monotonic()
        run = ["run", "--detach", "--name", self.name, "--network", "host", *hardened, *SHM, *given, *options]
        # Podman runs health checks by systemd, which may be missing here. The tests run the command themselves.
        if ENGINE == "podman":
            run += ["--health-interval", "disable"]
        done = engine(*run, IMAGE, *command)
        assert done.returncode == 0, done.stderr

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        engine("rm", "--force", "--volumes", self.name)

    def wait_ready(self) -> float:
        """Wait for the first 200 of readiness; the seconds since the start."""
        while time.monotonic() < self.started_at + START_TIMEOUT_S:
            with contextlib.suppress(httpx.HTTPError):
                if self.is_ready():
                    return time.monotonic() - self.started_at
            assert self.state()["Running"], f"it ended: {self.logs()}"
            time.sleep(0.1)
        raise AssertionError(f"not ready in {START_TIMEOUT_S} s: {self.logs()}")

    def wait_end(self, timeout_s: float = START_TIMEOUT_S) -> int:
        """Wait until the container ends by itself; its exit code."""
        return int(engine("wait", self.name, timeout_s=timeout_s).stdout)

    def state(self) -> dict[str, Any]:
        """The `State` of the engine's `inspect`."""
        found: dict[str, Any] = json.loads(engine("inspect", "--type", "container", self.name).stdout)[0]["State"]
        return found

    def output(self) -> tuple[str, str]:
        """(standard output, standard error) of the container so far."""
        done = engine("logs", self.name)
        return done.stdout, done.stderr

    def logs(self) -> str:
        """Everything that the container wrote, standard output first."""
        return "".join(self.output())

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside the container."""
        return engine("exec", self.name, *command)

    def is_ready(self) -> bool:
        """Whether readiness answers 200. Raises httpx.HTTPError without an answer."""
        return httpx.get(f"{self.url}/v2/health/ready", timeout=30).status_code == 200

    def signal(self, name: str) -> None:
        """Send a signal, such as `TERM`, to the container's first process."""
        engine("kill", "--signal", name, self.name)

    def stop(self) -> tuple[int, float]:
        """Stop it by SIGTERM as an orchestrator does; (exit code, seconds)."""
        start = time.monotonic()
        done = engine("stop", "--time", str(STOP_TIMEOUT_S), self.name, timeout_s=STOP_TIMEOUT_S + 30)
        assert done.returncode == 0, done.stderr
        return int(self.state()["ExitCode"]), time.monotonic() - start


class PoissonLoad:
    """Requests at random times, independent of the answers, each on a connection of its own (open loop)."""

    def __init__(self, container: Container, body: bytes, rate: float) -> None:
        self._container = container
        self._request = predict_request(body)
        self._rate = rate
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(256)
        self._sent: list[tuple[float, Future[str]]] = []
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        random_times = random.Random(1)
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            self._sent.append((time.monotonic(), self._pool.submit(self._ask)))
            due += random_times.expovariate(self._rate)

    def _ask(self) -> str:
        try:
            caller = Caller(self._container)  # type: ignore[arg-type]  # it wants a port
        except ConnectionRefusedError:
            return "refused"
        caller.send(self._request)
        status, _ = caller.answer()
        caller.close()
        return "cut off" if status is None else str(status)

    def finish(self) -> list[tuple[float, str]]:
        """Stop sending; (time sent, outcome) of every request. The outcome is a status, `refused` or `cut off`."""
        self._over.set()
        self._thread.join()
        outcomes = [(sent_at, outcome.result()) for sent_at, outcome in self._sent]
        self._pool.shutdown()
        return outcomes


def count(outcomes: Sequence[tuple[float, str]], when: Callable[[float], bool]) -> dict[str, int]:
    """How often each outcome occurred among the requests whose time sent satisfies `when`."""
    counts: dict[str, int] = {}
    for sent_at, outcome in outcomes:
        if when(sent_at):
            counts[outcome] = counts.get(outcome, 0) + 1
    return counts
