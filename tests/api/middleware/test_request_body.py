"""The body limit over real sockets, where a refusal has to come before the body does; and its arithmetic without."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import uvicorn
from api_harness import MakePredictor
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve.api import create_app
from serve.api.middleware.request_body import BodyLimit
from serve.api.native.problems import respond

LIMIT = 20_000
PATH = "/v1/models/fraud/predict"
GOOD = json.dumps({"records": [{"amount": 1, "age": 2}]}).encode()


@pytest.fixture(params=["h11", "httptools"])
def address(make_predictor: MakePredictor, request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """A uvicorn server in a thread. Its socket listens before it runs, so nobody has to wait for it."""
    app = create_app(make_predictor(max_body_bytes=LIMIT))
    config = uvicorn.Config(app, log_config=None, access_log=False, http=request.param, loop="asyncio", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: dict[str, object]


class Client:
    """A client that sends just what it is told to, and can wait for the end of the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader = connection.makefile("rb")

    def start(self, *headers: str, method: str = "POST", path: str = PATH) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]
        self.send("\r\n".join(lines).encode())

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> Answer:
        status = int(self._reader.readline().split()[1])
        headers = {}
        while line := self._reader.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return Answer(status, headers, json.loads(self._reader.read(int(headers["content-length"]))))

    def at_end(self) -> bool:
        self._socket.shutdown(socket.SHUT_WR)
        return self._reader.read() == b""


@contextlib.contextmanager
def connect(address: tuple[str, int]) -> Iterator[Client]:
    with socket.create_connection(address, timeout=20) as connection:
        client = Client(connection)
        with client._reader:
            yield client


def check_refusal(answer: Answer) -> None:
    assert (answer.status, answer.body["code"]) == (413, "too_large")
    assert str(LIMIT) in str(answer.body["detail"])
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"] == answer.body["request_id"]


def test_a_declared_large_body_is_refused_before_it_is_sent(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.start("Content-Length: 100000000")
        client.send(b'{"rec')
        check_refusal(client.answer())
        assert client.at_end()


def test_who_asks_first_is_not_told_to_continue(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.start("Content-Length: 100000000", "Expect: 100-continue")
        check_refusal(client.answer())


def test_an_answer_survives_a_client_that_sends_everything_first(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.start(f"Content-Length: {2 * LIMIT}")
        client.send(b" " * 2 * LIMIT)
        check_refusal(client.answer())
        assert client.at_end()


def test_a_chunked_body_is_refused_at_the_limit(address: tuple[str, int]) -> None:
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    with connect(address) as client:
        client.start("Transfer-Encoding: chunked")
        for _ in range(LIMIT // 0x1000 + 1):
            client.send(chunk)
        check_refusal(client.answer())  # the last chunk was never sent
        assert client.at_end()


def test_at_the_limit_is_not_over_it(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.start(f"Content-Length: {LIMIT}")
        client.send(GOOD.ljust(LIMIT))
        assert client.answer().status == 200
        client.start("Transfer-Encoding: chunked")
        client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (LIMIT, GOOD.ljust(LIMIT)))
        assert client.answer().status == 200


def test_others_are_answered_beside_a_refusal(address: tuple[str, int]) -> None:
    with connect(address) as refused, connect(address) as client:
        refused.start("Content-Length: 100000000")
        check_refusal(refused.answer())
        client.start(f"Content-Length: {len(GOOD)}")
        client.send(GOOD)
        assert client.answer().status == 200
        client.start(method="GET", path="/v2/health/ready")
        assert client.answer().body == {"ready": True}


class Recorder:
    """An app that reads its body whole, beside a client that sends `chunks`."""

    def __init__(self, *chunks: bytes) -> None:
        self.num_bytes = 0
        self.sent: list[Message] = []
        self._left = list(chunks)

    async def app(self, _scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            self.num_bytes += len(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive(self) -> Message:
        return {"type": "http.request", "body": self._left.pop(0), "more_body": bool(self._left)}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def code(self) -> object:
        """The code of the problem that was sent."""
        return json.loads(b"".join(message.get("body", b"") for message in self.sent))["code"]

    async def run(self, *headers: tuple[bytes, bytes]) -> int:
        def render(error: BaseException, scope: Scope) -> Response:
            return respond(error, scope["state"]["request_id"])

        scope = {"type": "http", "method": "POST", "headers": headers, "state": {"request_id": "r"}}
        await BodyLimit(self.app, 10, render)(scope, self.receive, self.send)
        starts = [message["status"] for message in self.sent if message["type"] == "http.response.start"]
        assert len(starts) == 1
        assert [message.get("more_body", False) for message in self.sent[1:]][-1] is False
        return int(starts[0])


@pytest.mark.parametrize("value", [b"-1", b"+5", b"ten", b"", b"1e3", b"0x10", b"5, 5", "\u00b2".encode("latin-1")])
async def test_a_length_that_is_no_number(value: bytes) -> None:
    recorder = Recorder(b"")
    assert await recorder.run((b"content-length", value)) == 400
    assert recorder.code == "invalid_header"
    assert recorder.num_bytes == 0


@pytest.mark.parametrize("value", [b"11", b"9" * 18, b"9" * 6_000])
async def test_a_length_over_the_limit(value: bytes) -> None:
    recorder = Recorder(b"")
    assert await recorder.run((b"content-length", value)) == 413
    assert recorder.code == "too_large"


@pytest.mark.parametrize("value", [b"10", b"0", b"0000000000000000000000010"])
async def test_a_length_within_the_limit(value: bytes) -> None:
    recorder = Recorder(b"x" * 4, b"x" * 6)
    assert await recorder.run((b"content-length", value)) == 204
    assert recorder.num_bytes == 10


async def test_nothing_beyond_the_limit_reaches_the_app() -> None:
    recorder = Recorder(b"x" * 6, b"x" * 4, b"x", b"x" * 5)
    assert await recorder.run() == 413
    assert recorder.num_bytes == 10
    assert recorder.code == "too_large"


async def test_a_length_that_lies_does_not_help() -> None:
    assert await Recorder(b"x" * 11).run((b"content-length", b"5")) == 413
