"""`tabpfn-serve up`, in real processes in which Ray cannot be imported; and the command line itself."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from edge_harness import TIMEOUT_S, WITHOUT_RAY, Server, corrupt_repository, running, stop_under_load, wait_until

from serve.cli import serve_command
from serve.cli.main import main
from serve.cli.parser import Parser, given
from serve.edges.sockets import bind
from serve.settings import InvalidSettings, ServerSettings, every_setting
from serve.settings.sources import ServeOptions, UpOptions, flag, load, own_options
from serve.settings.words import choices_of, default_of
from serve.store.folder import EMBEDDED

FAST_START = ["--max-batch-rows", "16"]  # fewer row buckets to warm up


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(WITHOUT_RAY, "up", "--port", "0", *FAST_START) as server:
        yield server


def run(*arguments: str, program: list[str] = WITHOUT_RAY) -> tuple[int, list[str]]:
    """(exit code, lines of stderr) of a command that ends by itself."""
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_ready_line_names_url_and_a_command_that_works_as_it_is(server: Server) -> None:
    assert f"ready at {server.url} " in server.ready_line
    done = subprocess.run(server.command, shell=True, capture_output=True, text=True, timeout=60, check=True)
    answer = json.loads(done.stdout)
    assert answer["model"] == "fraud"
    assert sum(answer["predictions"][0]["probabilities"]) == pytest.approx(1)


def test_serves_docs_and_health(server: Server) -> None:
    for path in ("/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready", "/ping", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200, path


def test_listens_on_loopback_only(server: Server) -> None:
    assert [(address, port) for _, address, port in server.listeners()] == [("127.0.0.1", server.port)]


def test_busy_port_ends_with_one_line(server: Server) -> None:
    code, lines = run("up", "--port", str(server.port))
    assert code == 1
    assert lines == [
        f"tabpfn-serve: the start failed: cannot listen on 127.0.0.1 port {server.port}: Address already in use"
    ]


def test_nobody_listens_before_the_models_are_ready() -> None:
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("fronts", [[], ["--num-fronts", "2"]], ids=["one process", "two fronts"])
def test_sigterm_under_load_answers_everyone_and_exits_with_0(fronts: list[str]) -> None:
    with running(WITHOUT_RAY, "up", "--port", "0", *FAST_START, *fronts) as server:
        record = json.loads(server.body)["records"][0]
        result = stop_under_load(server, json.dumps({"records": [record] * 16}).encode())
    assert [status for status, _ in result["admitted"]] == [200] * 48
    assert all(len(json.loads(body)["predictions"]) == 16 for _, body in result["admitted"])
    assert result["late"][0] in (None, 503)
    assert result["half_sent"][0] in (200, 503)
    assert result["exit_code"] == 0
    assert result["errors"] == ""


def test_a_lame_duck_is_not_ready_and_answers_until_it_is_told_to_hurry() -> None:
    with running(WITHOUT_RAY, "up", "--port", "0", "--lame-duck-s", "60", *FAST_START) as server:
        ready = f"{server.url}/v2/health/ready"
        assert httpx.get(ready).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(ready).status_code == 503)
        answer = httpx.post(f"{server.url}/v1/models/fraud/predict", content=server.body)
        assert (answer.status_code, len(answer.json()["predictions"])) == (200, 1)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(TIMEOUT_S) == 0


def test_it_ends_with_1_when_its_engine_does() -> None:
    server = Server(WITHOUT_RAY, "up", "--port", "0", *FAST_START)
    child = next(process for process in server.family() if "worker.server" in " ".join(process.cmdline()))
    child.kill()
    error = server.process.communicate(timeout=TIMEOUT_S)[1]
    assert server.process.returncode == 1
    assert error.splitlines()[-1].startswith("tabpfn-serve: the engine is gone")


def test_bad_model_ends_with_one_line(tmp_path: Path) -> None:
    repository = corrupt_repository(tmp_path, EMBEDDED)
    code, lines = run("up", "--port", "0", "--model-repository", str(repository))
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("tabpfn-serve: the start failed: ")
    assert "context.parquet has sha256" in lines[0]


def test_serve_without_ray_says_how_to_install_it() -> None:
    code, lines = run("serve", "--port", "0")
    assert code == 1
    assert len(lines) == 1
    assert 'pip install "tabpfn-serve[ray]"' in lines[0]


def test_predictor_imports_without_ray() -> None:
    modules = "serve.replica.predictor, serve.api, serve.replica.factory, serve.edges.uvicorn_server"
    block = f"import sys; sys.modules['ray'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", block], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--device", "gpu"], "setting engine.device: "),
        (["--max-batch-rows", "0"], "setting batching.max_batch_rows: "),
        (["--model", "a=s3://models/x.pkl"], "setting store.models.0: model a: s3://models/x.pkl is a pickle"),
        (["--model", "a=ftp://b/x"], "setting store.models.0: ftp://b/x: models are read from folders and from s3://"),
        (["--model", "a=x", "--model", "a=y"], "setting store: store.models names a more than once"),
        (["--model", "a=x", "--model-repository", "y"], "setting store: store.models and store.model_repository are"),
        (["--config", "absent.yaml"], "cannot read absent.yaml: "),
        (["--model", "fraud"], "setting store.models.0: 'fraud' is not NAME=URI or NAME=URI@sha256:HEX"),
        (["--port", "80800"], "option --port: must be at most 65535"),
        (
            ["--backend", "ours"],
            "setting engine.backend: must be 'compiled' or 'tabpfn', but is 'ours' (given by --back",
        ),
        (["--log-level", "loud"], "option --log-level: must be 'debug', 'info', 'warning' or 'error'"),
        (["--host", "198.51.100.7"], "the start failed: cannot listen on 198.51.100.7 port 8080: "),
    ],
)
def test_refused_arguments_end_with_one_line(arguments: list[str], reason: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["up", *arguments]) != 0
    assert capsys.readouterr().err.startswith(f"tabpfn-serve: {reason}")


def settings(*arguments: str, command: str = "up") -> ServerSettings:
    parser = Parser()
    serve_command.add_parser(parser.add_subparsers(dest="command"))
    options = given(parser.parse_args([command, *arguments]))
    return load(ServeOptions if command == "serve" else UpOptions, options).settings


def test_no_options_are_the_defaults() -> None:
    assert settings() == ServerSettings()


def test_every_setting_has_an_option_of_its_name() -> None:
    found = settings(
        "--num-threads", "3", "--max-queue-delay-ms", "2.5", "--allow-non-commercial", "--device", "cuda:1"
    )
    assert found.engine.num_threads == 3
    assert found.engine.device == "cuda:1"
    assert found.batching.max_queue_delay_ms == 2.5
    assert found.store.allow_non_commercial is True


def test_models_are_given_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = settings("--model", "fraud=models/fraud/1", "--model", f"churn=s3://bucket/x.pkl@sha256:{'a' * 64}")
    assert [(model.name, model.uri, model.sha256) for model in found.store.models] == [
        ("fraud", str(tmp_path / "models/fraud/1"), None),
        ("churn", "s3://bucket/x.pkl", "a" * 64),
    ]


def test_models_may_be_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("applications: [{args: {store: {models: [{name: fraud, uri: 's3://bucket/fraud/1'}]}}}]")
    assert [model.uri for model in settings("--config", str(file)).store.models] == ["s3://bucket/fraud/1"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["up", "--max-batch-row", "5"], "unknown option --max-batch-row; did you mean --max-batch-rows?"),
        (["serve", "--num-replica=2"], "unknown option --num-replica; did you mean --num-replicas?"),
        (["up", "--num-replicas", "2"], "unknown option --num-replicas"),
        (["up", "fraud"], "unknown argument fraud"),
        (["up", "--model"], "argument --model: expected one argument"),
        (["import", "x.pkl", "--nam", "x", "--name", "y", "--sha256", "0", "--out", "z"], "unknown option --nam; did "),
        (["upp"], "argument COMMAND: invalid choice: 'upp' (choose from "),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_command_line_at_fault_ends_with_one_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tabpfn-serve: {reason}")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["serve", "--num-replicas", "0"], "option --num-replicas: must be at least 1, but is '0'"),
        (["serve", "--model-repository", "/absent"], "model repository /absent is not a folder"),
        (["up", "--model-repository", "{tmp_path}"], "model repository {tmp_path} holds no model"),
        (["up", "--model-repository", "/" + "a" * 300], "/" + "a" * 300 + " cannot be read: File name too long"),
        (["up", "--model", "a=/" + "a" * 300], "/" + "a" * 300 + " cannot be read: File name too long"),
        (["up", "--model", "a=/absent/a.pkl@sha256:" + "0" * 64], "model a: /absent/a.pkl does not exist"),
        (["up", "--device", "cuda"], "setting engine.device: 'cuda' is no device; write `cpu`, or one GPU"),
        (["up", "--config", "{tmp_path}/bad.yaml"], "unknown setting `engine.devise`; did you mean `engine.device`?"),
    ],
)
def test_faults_are_reported_before_anything_heavy_is_imported(
    arguments: list[str], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text("engine: {devise: cpu}")
    code = f"""
import sys
from serve.cli.main import main
exit_code = main({[argument.format(tmp_path=tmp_path) for argument in arguments]})
heavy = {{"torch", "tabpfn", "ray", "uvicorn", "fastapi", "pandas", "sklearn", "boto3"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else exit_code)
"""
    exit_code, lines = run(program=[sys.executable, "-c", code])
    assert len(lines) == 1
    assert lines[0].startswith("tabpfn-serve: " + reason.format(tmp_path=tmp_path))
    assert exit_code == 2


def test_a_gpu_that_is_not_there_is_reported_before_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert main(["up", "--device", "cuda:64"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tabpfn-serve: setting engine.device: cuda:64 ")


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"tabpfn-serve {version('tabpfn-serve')}\n"


@pytest.mark.parametrize(("command", "options"), [("up", UpOptions), ("serve", ServeOptions)])
def test_help_shows_every_option_with_its_default_and_choices(
    command: str, options: type[UpOptions], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")  # so that no line is broken
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    entries = capsys.readouterr().out.split("\n  --")
    fields = [*own_options(options), *((name, field) for _, name, field in every_setting())]
    for name, field in fields:
        (entry,) = [entry for entry in entries if re.match(rf"{flag(name)[2:]}[ ,]", entry)]
        assert f"(default: {default_of(field)}" in entry
        assert all(choice in entry.partition("\n")[0] for choice in choices_of(field))


@pytest.mark.parametrize("shape", ["applications:\n  - args: {}", "{}"])
def test_options_go_before_the_file(tmp_path: Path, shape: str) -> None:
    args = "{engine: {num_threads: 2}, api: {drain_timeout_s: 7}}"
    file = tmp_path / "config.yaml"
    file.write_text(shape.replace("{}", args))
    found = settings("--config", str(file), "--num-threads", "4")
    assert (found.engine.num_threads, found.api.drain_timeout_s) == (4, 7)


@pytest.mark.parametrize("content", ["[1, 2]", "engine: 3", "a: {b: [", "applications: []", "engine: {devise: cpu}"])
def test_file_without_settings_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(InvalidSettings):
        settings("--config", str(file))


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("10.1.2.3", "http://10.1.2.3:80")]
)
def test_url_is_one_that_can_be_called(host: str, url: str) -> None:
    assert serve_command._url(host, 80) == url


def test_ready_line_quotes_for_the_shell() -> None:
    line = serve_command._ready_line("http://h", "m", {"it's": "a $HOME"})
    echoed = subprocess.run(
        line.split("try: ")[1].replace("curl", "printf '%s\\n'", 1),
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(echoed.stdout.splitlines()[-1]) == {"records": [{"it's": "a $HOME"}]}


def test_relative_folders_are_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = settings("--model-repository", "models", "--kv-cache-dir", "kv", command="serve")
    assert found.store.model_repository == tmp_path / "models"
    assert found.engine.kv_cache_dir == tmp_path / "kv"


def test_importing_a_pickle_of_another_digest_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickle = tmp_path / "model.pkl"
    pickle.write_bytes(b"not what was promised")
    assert main(["import", str(pickle), "--sha256", "0" * 64, "--name", "m", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tabpfn-serve: ")
    assert error.count("\n") == 1
    assert "0" * 64 in error


@pytest.mark.parametrize(("num_replicas", "said", "needed"), [(1, None, False), (1, "1", True), (2, None, True)])
def test_several_replicas_share_haproxy(
    num_replicas: int, said: str | None, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    if said is not None:
        monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", said)
    assert serve_command._needs_haproxy(num_replicas) is needed
