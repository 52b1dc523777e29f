"""A TCP relay in front of a server, which records requests and holds or cuts answers after a number of bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

TIMEOUT_S = 300.0


class Relay:
    """Forwards 127.0.0.1:`port` to another port of this machine."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream = ("127.0.0.1", upstream_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[str] = []
        """The head of each request, in order."""
        self.held = threading.Event()
        """Set when an answer is held."""
        self._go_on = threading.Event()
        self._bytes_left: int | None = None
        self._cuts = False
        self._bytes_left_after_cut: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hold_after(self, num_bytes: int) -> None:
        """Hold one answer, once `num_bytes` of all answers were sent. `release` lets it continue."""
        self.held.clear()
        self._go_on.clear()
        self._bytes_left, self._cuts = num_bytes, False

    def cut_after(self, num_bytes: int) -> None:
        """Close one connection, once `num_bytes` of all answers were sent."""
        self._bytes_left, self._cuts = num_bytes, True

    def cut_every(self, num_bytes: int) -> None:
        """Close a connection each time that `num_bytes` of answers were sent since the last cut."""
        self.cut_after(num_bytes)
        self._bytes_left_after_cut = num_bytes

    def wait_until_held(self) -> None:
        assert self.held.wait(TIMEOUT_S), f"no answer was held: {self.requests}"

    def release(self) -> None:
        self._go_on.set()

    def close(self) -> None:
        self._go_on.set()
        _close(self._listener)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = _connect(self._upstream)
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if data.startswith((b"GET ", b"HEAD ", b"PUT ", b"POST ")):
                    self.requests.append(data.decode("latin-1"))
                server.sendall(data)
        _close(client, server)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if self._bytes_left is not None and (rest := self._bytes_left - len(data)) <= 0:
                    self._bytes_left = None
                    client.sendall(data[: max(rest + len(data), 0)])
                    if self._cuts:
                        self._bytes_left = self._bytes_left_after_cut
                        break
                    self.held.set()
                    self._go_on.wait(TIMEOUT_S)
                    data = data[max(rest + len(data), 0) :]
                elif self._bytes_left is not None:
                    self._bytes_left = rest
                client.sendall(data)
        _close(client, server)


def _connect(address: tuple[str, int]) -> socket.socket:
    """A connection with a small window, so that the server cannot send on while an answer is held here."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def _close(*sockets: socket.socket) -> None:
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


@contextlib.contextmanager
def relay_to(port: int) -> Iterator[Relay]:
    relay = Relay(port)
    try:
        yield relay
    finally:
        relay.close()
