"""`scripts/smoke` against a small HTTP server, and its known answers against the engine.

`.venv/bin/python tests/test_smoke.py` writes scripts/smoke-expected.json from the engine's answers. Run it after a
change of the demo model or its checkpoint.
"""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "scripts" / "smoke"
EXPECTED = ROOT / "scripts" / "smoke-expected.json"


async def ask_engine(expected: dict[str, Any]) -> list[list[float]]:
    """The probabilities of the expected records, from the demo model in this process."""
    from serve.api import create_app
    from serve.replica.factory import assemble
    from serve.settings import ServerSettings

    app = create_app(assemble(ServerSettings()))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=60) as client,
    ):
        body = {"records": expected["records"]}
        answer = await client.post(f"/v1/models/{expected['model']}/predict", json=body)
    assert answer.status_code == 200, answer.text
    return [prediction["probabilities"] for prediction in answer.json()["predictions"]]


async def test_known_answers_are_the_engines() -> None:
    expected = json.loads(EXPECTED.read_text())
    found = await ask_engine(expected)
    for row, known in zip(found, expected["probabilities"], strict=True):
        assert row == pytest.approx(known, abs=1e-4), "run: .venv/bin/python tests/test_smoke.py"


def test_known_answers_expose_a_wrong_model() -> None:
    """A model that gives every row the same answer does not pass."""
    first, second = json.loads(EXPECTED.read_text())["probabilities"]
    assert abs(first[0] - second[0]) > 0.2


# --- the script -----------------------------------------------------------------------------------------------------


class FakeService:
    """Gives the server's answers; a test changes one of them."""

    def __init__(self) -> None:
        expected = json.loads(EXPECTED.read_text())
        predictions = [{"probabilities": row} for row in expected["probabilities"]]
        self.ready = 200
        self.models: Any = {"models": [{"name": "fraud"}, {"name": "churn"}]}
        self.prediction: Any = {"predictions": predictions}
        self.bad_input = 422
        self.asked: list[str] = []

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append(path)
        if path.startswith("/v2/health"):
            return (self.ready if path.endswith("ready") else 200), {}
        if path == "/v1/models":
            return 200, self.models
        if body is None:
            return 200, {"example": {"amount": 1.0}}
        if "no_such_column" in body["records"][0]:
            return self.bad_input, {"code": "invalid_input"}
        return 200, self.prediction


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, content = service.answer(self.path, json.loads(data) if data else None)
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def smoke(*arguments: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-I", str(SMOKE), "--requests", "3", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def test_a_correct_server_passes(url: str) -> None:
    code, lines = smoke(url)
    assert code == 0
    assert [line.split(":")[0] for line in lines] == [
        "ok    live",
        "ok    ready",
        "ok    models",
        "ok    prediction",
        "ok    bad input",
        "ok    latency",
    ]


def failed(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("FAIL")]


def test_a_wrong_answer_fails(service: FakeService, url: str) -> None:
    service.prediction["predictions"][1]["probabilities"] = [0.5, 0.5]
    code, lines = smoke(url)
    assert code == 1
    assert len(failed(lines)) == 1
    assert "FAIL  prediction: " in failed(lines)[0]
    assert smoke(url, "--tolerance", "1")[0] == 0


def test_not_a_number_is_a_wrong_answer(service: FakeService, url: str) -> None:
    service.prediction["predictions"][1]["probabilities"] = [float("nan"), float("nan")]
    assert smoke(url)[0] == 1


def test_each_fault_fails(service: FakeService, url: str) -> None:
    service.ready, service.bad_input, service.models = 503, 200, {"models": [{"name": "churn"}]}
    code, lines = smoke(url)
    assert code == 1
    assert [line.split(":")[0] for line in failed(lines)] == ["FAIL  ready", "FAIL  models", "FAIL  bad input"]


def test_an_answer_of_another_shape_fails_without_a_traceback(service: FakeService, url: str) -> None:
    service.models, service.prediction = [], {"predictions": []}
    code, lines = smoke(url)
    assert code == 1
    assert len(failed(lines)) == 2


def test_another_model_has_no_known_answer(service: FakeService, url: str) -> None:
    service.prediction["predictions"] = [{"probabilities": [1.0]}]
    code, lines = smoke(url, "--model", "churn")
    assert code == 0, lines
    assert "no known answer" in lines[3]
    assert "/v1/models/churn/predict" in service.asked


def test_latency_above_the_limit_fails(url: str) -> None:
    code, lines = smoke(url, "--max-p99-ms", "0.0001")
    assert code == 1
    assert "the limit of p99" in failed(lines)[0]


def test_without_a_server_every_check_fails_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    code, lines = smoke(f"http://127.0.0.1:{port}")
    assert code == 1
    assert len(failed(lines)) == len(lines) == 6
    assert "refused" in lines[0]


if __name__ == "__main__":
    content = json.loads(EXPECTED.read_text())
    content["probabilities"] = [[round(p, 6) for p in row] for row in asyncio.run(ask_engine(content))]
    EXPECTED.write_text(json.dumps(content, indent=1) + "\n")
