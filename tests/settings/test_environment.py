"""Settings and options by environment variables, as containers are told them."""

import json
import os
from pathlib import Path

import pytest

from serve.cli import main as cli
from serve.settings import environment, every_setting


@pytest.fixture(autouse=True)
def _no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(environment.PREFIX)]:
        monkeypatch.delenv(name)


def settings(*arguments: str):  # type: ignore[no-untyped-def]
    return cli._settings(cli._parser().parse_args(cli._with_variables(["up", *arguments])))


def test_every_setting_has_a_variable_of_its_own() -> None:
    variables = {environment._variable(f"{owner}_{name}") for owner, name, _ in every_setting()}
    assert len(variables) == len(list(every_setting()))
    assert not variables & {environment._variable(name) for names in environment._OPTIONS.values() for name in names}


def test_variables_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = [{"name": "churn", "uri": "s3://bucket/churn/1"}, {"name": "fraud", "uri": "models/fraud/1"}]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TABPFN_SERVE_ENGINE_NUM_THREADS", "3")
    monkeypatch.setenv("TABPFN_SERVE_STORE_ALLOW_NON_COMMERCIAL", "true")
    monkeypatch.setenv("TABPFN_SERVE_STORE_MODELS", json.dumps(models))
    monkeypatch.setenv("TABPFN_SERVE_STORE_DOWNLOAD_DIR", "cache")
    given = settings()
    assert given.engine.num_threads == 3
    assert given.store.allow_non_commercial is True
    assert [model.uri for model in given.store.models] == ["s3://bucket/churn/1", str(tmp_path / "models/fraud/1")]
    assert given.store.download_dir == tmp_path / "cache"


def test_the_command_line_goes_before_variables_and_they_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("{engine: {num_threads: 2}, batching: {max_batch_rows: 2}, api: {max_body_bytes: 2000}}")
    monkeypatch.setenv("TABPFN_SERVE_CONFIG", str(file))
    monkeypatch.setenv("TABPFN_SERVE_ENGINE_NUM_THREADS", "3")
    monkeypatch.setenv("TABPFN_SERVE_BATCHING_MAX_BATCH_ROWS", "3")
    given = settings("--num-threads", "4")
    assert (given.engine.num_threads, given.batching.max_batch_rows, given.api.max_body_bytes) == (4, 3, 2000)


def test_options_of_a_command_are_variables_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABPFN_SERVE_HOST", "0.0.0.0")
    monkeypatch.setenv("TABPFN_SERVE_PORT", "8081")
    monkeypatch.setenv("TABPFN_SERVE_LOG_LEVEL", "info")
    monkeypatch.setenv("TABPFN_SERVE_NUM_REPLICAS", "2")
    options = cli._parser().parse_args(cli._with_variables(["serve", "--port", "8082"]))
    assert (options.host, options.port, options.log_level, options.num_replicas) == ("0.0.0.0", 8082, "info", 2)
    assert cli._parser().parse_args(cli._with_variables(["up"])).port == 8081
    assert cli._with_variables([]) == []
    assert cli._with_variables(["--help"]) == ["--help"]


def test_an_empty_variable_takes_another_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABPFN_SERVE_STORE_MODEL_REPOSITORY", "")
    monkeypatch.setenv("TABPFN_SERVE_STORE_MODELS", "")
    monkeypatch.setenv("TABPFN_SERVE_PORT", "")
    assert settings().store.model_repository is None
    assert cli._with_variables(["up"]) == ["up"]


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TABPFN_SERVE_ENGINE_DEVISE", "cpu", "TABPFN_SERVE_ENGINE_DEVISE in the environment is no setting"),
        ("TABPFN_SERVE_DEVICE", "", "TABPFN_SERVE_DEVICE in the environment is no setting"),
        ("TABPFN_SERVE_STORE_MODELS", "[", "TABPFN_SERVE_STORE_MODELS in the environment is not JSON: "),
        ("TABPFN_SERVE_STORE_MODELS", "{}", "setting store.models: "),
        ("TABPFN_SERVE_STORE_MODELS", '[{"name": "a"}]', "setting store.models.0.uri: "),
        ("TABPFN_SERVE_ENGINE_NUM_THREADS", "many", "setting engine.num_threads: "),
        ("TABPFN_SERVE_CONFIG", "absent.yaml", "cannot read absent.yaml: "),
    ],
)
def test_what_cannot_be_understood_ends_with_one_line(
    variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    assert cli.main(["up"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"tabpfn-serve: {reason}")


def test_what_kubernetes_says_of_a_service_named_like_us_is_not_ours() -> None:
    service = {
        "TABPFN_SERVE_SERVICE_HOST": "10.0.0.7",
        "TABPFN_SERVE_SERVICE_PORT": "8080",
        "TABPFN_SERVE_SERVICE_PORT_HTTP": "8080",
        "TABPFN_SERVE_PORT": "tcp://10.0.0.7:8080",
        "TABPFN_SERVE_PORT_8080_TCP": "tcp://10.0.0.7:8080",
        "TABPFN_SERVE_PORT_8080_TCP_PROTO": "tcp",
        "TABPFN_SERVE_PORT_8080_TCP_PORT": "8080",
        "TABPFN_SERVE_PORT_8080_TCP_ADDR": "10.0.0.7",
    }
    assert environment.settings(service) == {}
    assert environment.options(service, "up") == {}


def test_sagemakers_port_is_that_of_serve_alone() -> None:
    told = {"TABPFN_SERVE_PORT": "8080", "SAGEMAKER_BIND_TO_PORT": "9000"}
    assert environment.options(told, "serve")["port"] == "9000"
    assert environment.options(told, "up")["port"] == "8080"
