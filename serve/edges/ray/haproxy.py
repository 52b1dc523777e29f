"""Ray's HAProxy as the listener of `tabpfn-serve serve`: it listens at one address only, and is closed on purpose.

Theory of operation
-------------------
Ray Serve 2.60 writes HAProxy's configuration and starts HAProxy, again at every change of the replicas: a new process
takes the sockets over, and the old one finishes its requests. Two of its listeners are open to the network with no
setting against it: metrics on `:9101` and statistics on `*:8404`. Ray reads HAProxy's numbers by a unix socket, so no
part needs those listeners. Ray has a setting for the program to start: `haproxy_exec.py` takes the two listeners out of
the file and then becomes HAProxy, so process id and arguments are as Ray expects.

Ray's one setting of the host holds for HAProxy's public listener and for the replicas behind it. So Ray is given the
loopback, and the program writes the address that was asked for into the public listener alone.

The program also guards the public listener. Headers have their time, also where they trickle. A connection on which
nothing has arrived ends without a page. An `x-request-id` that is no text is refused here, because Ray's server fails
on it. The pages of HAProxy's own parser stay as they are (400, and 408 within the headers): 2.8 has no setting for
them.

SIGUSR1 is HAProxy's soft stop: it closes the listening socket, lets every request finish, closes each connection after
its answer, and exits when the last is gone. Ray alone kills HAProxy instead, with every request in flight. Processes
are found in /proc by the path of their configuration, which lies in a private folder: never those of another server.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
from pathlib import Path

from serve.edges.ray.haproxy_exec import ADDRESS, HEADER_TIMEOUT_S, PROGRAM

_CONFIG = "haproxy.cfg"
_POLL_S = 0.05


class HAProxy:
    """HAProxy as Ray starts it (`lifecycle.Listener`). Needs Linux (/proc) and a private folder, which outlives it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self, haproxy: str, host: str, port: int, header_timeout_s: float) -> dict[str, str]:
        """The environment that makes Ray run `haproxy_exec.py` in HAProxy's place, and keep its files in the folder.

        `host` is a numeric address, of IPv4 or IPv6.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return {
            PROGRAM: haproxy,
            ADDRESS: address,
            HEADER_TIMEOUT_S: str(math.ceil(header_timeout_s)),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("tabpfn-serve-haproxy")),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(self._folder / _CONFIG),
            # Short names: `temporary_folder.py` says how much room there is.
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self._folder / "a"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(self._folder / "m"),
            # A socket file without a reader; by default HAProxy would log from a UDP port on all interfaces.
            "RAY_SERVE_HAPROXY_LOG_TARGET": str(self._folder / "l"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self._folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(self._folder / "server-state"),
        }

    @property
    def is_open(self) -> bool:
        """True: Ray watches HAProxy, and starts it again."""
        return True

    async def open(self) -> None:
        """Nothing: Ray has started it, together with the replicas."""

    async def close(self) -> None:
        """Accept no more connections; every request inside goes on."""
        self._signal(signal.SIGUSR1)

    async def wait_empty(self) -> None:
        """Wait until the last answer has left."""
        while self._processes():  # noqa: ASYNC110 - processes of Ray's, which report their end only to Ray
            await asyncio.sleep(_POLL_S)

    async def abort(self) -> None:
        """Cut the connections that are left."""
        self._signal(signal.SIGTERM)

    def _signal(self, signum: signal.Signals) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

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
