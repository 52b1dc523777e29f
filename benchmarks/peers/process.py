"""A system's processes: started, waited for, frozen while others are measured, counted, and none left behind.

All processes of a system carry a mark in their environment, which their children inherit. By this mark they are found
in /proc, also those that detached themselves from their parent. No other process is ever signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.machine import ROOT
from benchmarks.online.client import Client
from benchmarks.online.errors import StartFailed

_MARK = "BENCHMARK_OF_TABPFN_SERVE"
_POLL_S = 0.2
_KILL_WAIT_S = 5.0
_SIGNAL_S, _SIGNAL_POLL_S = 3.0, 0.01
_NICE = os.getpriority(os.PRIO_PROCESS, 0)
"""Nice value of every system, also after the generator has changed its own."""


class Process:
    """One system. The code that starts it must stop it.

    Args:
        variables: added to the environment.
        log: file for the output of all its processes.
        start_s: longest wait for the first answer; long, since a busy machine is no fault. A process that ends is seen
            at once.
        stop_s: longest wait for the main process to end after `stop_signal`.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        variables: Mapping[str, str],
        port: int,
        log: Path,
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        start_s: float = 300.0,
        stop_s: float = 30.0,
    ) -> None:
        self.name, self.port = name, port
        self._arguments, self._variables, self._log = arguments, variables, log
        self._stop_signal, self._start_s, self._stop_s = stop_signal, start_s, stop_s
        self._mark = secrets.token_hex(8)
        self._main: subprocess.Popen[bytes] | None = None
        self._is_frozen = False
        self.num_killed = 0
        """Processes that were still there after the stop and had to be killed."""

    @property
    def url(self) -> str:
        """Where it listens, on the loopback."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The main process. It must have been started."""
        assert self._main is not None, "this is a bug: it has not started"
        return self._main.pid

    async def start(self, request: bytes) -> float:
        """Start, and wait until `request` is answered 200. Returns the seconds that this took. Raises StartFailed."""
        began = time.monotonic()
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **self._variables, _MARK: self._mark}
        self._main = self._spawn(variables)
        while not await self._answers(request):
            if self._main.poll() is not None:
                raise StartFailed(f"{self.name} ended with {self._main.returncode}: {self._last_lines()}")
            if time.monotonic() - began > self._start_s:
                raise StartFailed(f"{self.name} did not answer within {self._start_s:g} s: {self._last_lines()}")
            await asyncio.sleep(_POLL_S)
        return time.monotonic() - began

    def _spawn(self, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                self._arguments, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(OSError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        return process

    async def _answers(self, request: bytes) -> bool:
        client = Client("127.0.0.1", self.port, timeout_s=self._start_s)
        try:
            await client.open()
            return (await client.ask(request)).status == 200
        except OSError:
            return False
        finally:
            await client.close()

    def _last_lines(self) -> str:
        return " | ".join(self._log.read_text(errors="replace").splitlines()[-5:])[-1000:]

    def members(self) -> list[psutil.Process]:
        """Every process of the system that is alive."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == self._mark:
                    found.append(process)
        return found

    def cpu_s(self) -> float:
        """CPU time of the whole system so far, user and system, in seconds."""
        total = 0.0
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def rss_bytes(self) -> int:
        """Resident memory of all its processes together; shared pages count in each process."""
        total = 0
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def freeze(self) -> None:
        """Suspend every process of the system (SIGSTOP), so that it costs the others nothing."""
        self._is_frozen = True
        self._signal_until(signal.SIGSTOP, lambda status: status == psutil.STATUS_STOPPED)

    def thaw(self) -> None:
        """Let the processes go on (SIGCONT)."""
        if self._is_frozen:
            self._is_frozen = False
            self._signal_until(signal.SIGCONT, lambda status: status != psutil.STATUS_STOPPED)

    def _signal_until(self, signum: signal.Signals, is_done: Callable[[str], bool]) -> None:
        """Signal the processes until all have reached a state.

        A signal takes effect a moment later, and a process may have started another one meanwhile.
        """
        deadline = time.monotonic() + _SIGNAL_S
        while time.monotonic() < deadline:
            left = []
            for process in self.members():
                with contextlib.suppress(psutil.Error):  # it has ended
                    if not is_done(process.status()):
                        left.append(process)
            if not left:
                return
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signum)
            time.sleep(_SIGNAL_POLL_S)

    def stop(self) -> None:
        """Ask the main process to end, wait, and kill what is left."""
        if self._main is None:
            return
        self.thaw()
        if self._main.poll() is None:
            self._main.send_signal(self._stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._main.wait(self._stop_s)
        left = self.members()
        self.num_killed = len(left)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_KILL_WAIT_S)
        self._main.wait()


def stop_at_sigterm() -> None:
    """At SIGTERM the systems are stopped on the way out; a second signal must not cut that short."""

    def end_once(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(143)

    signal.signal(signal.SIGTERM, end_once)


def free_port() -> int:
    """A port that is free now; another process may take it in the next moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
