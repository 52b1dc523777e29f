"""Ray's HAProxy: the one public door of `tabpfn-serve serve`, made to listen nowhere else, and closed on purpose.

Theory of operation
-------------------
Ray Serve 2.60 writes HAProxy's configuration and starts it, again at every change of the replicas (a new process takes
the sockets over, the old one finishes what it has). Two of its listeners are open to the network with no setting
against it: metrics on `:9101` and statistics on `*:8404`. Ray itself reads HAProxy's numbers by a unix socket, so
nobody needs them. Ray does let us name the program: ours (`haproxy.py`) takes those two sections out of the file and
then becomes HAProxy, so process id and arguments are as Ray expects.

Ray's one setting of the host holds for HAProxy's front door and for the replicas behind it. So Ray is told the
loopback, and the program writes the address that was asked for into the front door alone.

SIGUSR1 is HAProxy's soft stop: it closes the listening socket, lets every request that it has finish, closes each
connection after its answer, and exits when the last is gone. Ray alone kills it instead, with every request in flight.
Processes are found in /proc by the path of their configuration, which lies in our own private folder: never another's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from serve.edges.ray.haproxy_exec import ADDRESS, PROGRAM

_CONFIG = "haproxy.cfg"
_POLL_S = 0.05


class HAProxy:
    """HAProxy as Ray starts it for us. Needs Linux (/proc) and a folder of our own, which outlives it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self, haproxy: str, host: str, port: int) -> dict[str, str]:
        """The environment that makes Ray run our program in HAProxy's place, and keep its files in our folder.

        `host` is a numeric address, of IPv4 or IPv6.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return {
            PROGRAM: haproxy,
            ADDRESS: address,
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("tabpfn-serve-haproxy")),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(self._folder / _CONFIG),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self._folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(self._folder / "metrics.sock"),
            # Nobody reads its log unless told to; by default it would send from a UDP port on all interfaces.
            "RAY_SERVE_HAPROXY_LOG_TARGET": str(self._folder / "log.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self._folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(self._folder / "server-state"),
        }

    def close(self) -> None:
        """Accept nothing more; every request inside goes on."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)

    def wait_empty(self, timeout_s: float) -> bool:
        """After `close`: wait until the last answer has left. False if time ran out first."""
        deadline = time.monotonic() + timeout_s
        while self._processes():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _processes(self) -> list[int]:
        prefix = os.fsencode(self._folder)
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                # A process that has just ended has no file, one that waits to be reaped an empty one.
                with contextlib.suppress(OSError):
                    arguments = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
                    if any(a.startswith(prefix) and a.endswith(_CONFIG.encode()) for a in arguments):
                        found.append(int(entry))
        return found
