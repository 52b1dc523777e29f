"""The health check's command of each template, run against a server that is ready, not ready, or absent."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from deployment.app import Template
from deployment.policies.template import containers

Templates = dict[str, dict[str, Template]]


class Answer(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/v2/health/ready" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def commands(committed: Templates) -> list[list[str]]:
    return [
        container.properties["HealthCheck"]["Command"]
        for stacks in committed.values()
        for template in stacks.values()
        for container in containers(template)
    ]


def exit_code(command: list[str], port: int) -> int:
    kind, program, *arguments = command
    assert (kind, program) == ("CMD", "python3")
    here = [argument.replace(":8080/", f":{port}/") for argument in arguments]
    return subprocess.run([sys.executable, *here], capture_output=True, timeout=30, check=False).returncode


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_healthy_is_ready(
    committed: Templates, port: int, status: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answer, "status", status)
    found = commands(committed)
    assert len(found) == 4
    for command in found:
        assert exit_code(command, port) == expected


def test_no_server_is_unhealthy(committed: Templates) -> None:
    assert exit_code(commands(committed)[0], 9) == 1
