"""Settings and options from the command line, the environment and a file: their order, and faults in them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from serve.cli.main import main
from serve.settings import InvalidSettings, ServerSettings, every_setting
from serve.settings.sources import (
    PREFIX,
    ServeOptions,
    UpOptions,
    flag,
    known_variables,
    load,
    own_options,
    variable,
)
from serve.settings.words import choices_of, default_of


@pytest.fixture(autouse=True)
def _no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith((PREFIX, "SAGEMAKER_"))]:
        monkeypatch.delenv(name)


def settings(**given: Any) -> ServerSettings:
    return load(UpOptions, given).settings


def test_every_setting_has_a_variable_and_an_option_of_its_own() -> None:
    variables = known_variables()
    assert len(variables) == len(set(variables)) == len(list(every_setting())) + len(list(own_options(ServeOptions)))
    flags = [flag(name) for _, name, _ in every_setting()] + [flag(name) for name, _ in own_options(ServeOptions)]
    assert len(flags) == len(set(flags))


TEXTS = {"device": "cuda:3", "models": '[{"name": "m", "uri": "/m"}]', "kv_cache_precision": "float16"}


@pytest.mark.parametrize(("group", "name", "field"), list(every_setting()))
def test_every_setting_can_be_given_by_its_variable(
    group: str, name: str, field: FieldInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    flipped = {"true": "false", "false": "true"}.get(default_of(field))
    is_number = "int" in str(field.annotation) or "float" in str(field.annotation)
    text = TEXTS.get(name) or (choices_of(field) or [None])[-1] or flipped or ("2077" if is_number else "http://other")
    monkeypatch.setenv(variable(group, name), text)
    changed = settings().model_dump()
    default = ServerSettings().model_dump()
    assert changed[group].pop(name) != default[group].pop(name)
    assert changed == default


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
    given = settings(engine={"num_threads": "4"})
    assert (given.engine.num_threads, given.batching.max_batch_rows, given.api.max_body_bytes) == (4, 3, 2000)


def test_models_of_the_command_line_replace_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABPFN_SERVE_STORE_MODELS", '[{"name": "a", "uri": "/a"}, {"name": "b", "uri": "/b"}]')
    assert [model.name for model in settings(store={"models": ["c=/c"]}).store.models] == ["c"]


def test_options_of_a_command_are_variables_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABPFN_SERVE_HOST", "0.0.0.0")
    monkeypatch.setenv("TABPFN_SERVE_PORT", "8081")
    monkeypatch.setenv("TABPFN_SERVE_LOG_LEVEL", "info")
    monkeypatch.setenv("TABPFN_SERVE_NUM_REPLICAS", "2")
    options = load(ServeOptions, {"port": "8082"})
    assert (options.host, options.port, options.log_level, options.num_replicas) == ("0.0.0.0", 8082, "info", 2)
    assert load(UpOptions, {}).port == 8081


def test_an_empty_variable_takes_another_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABPFN_SERVE_STORE_MODEL_REPOSITORY", "")
    monkeypatch.setenv("TABPFN_SERVE_STORE_MODELS", "")
    monkeypatch.setenv("TABPFN_SERVE_PORT", "")
    assert settings() == ServerSettings()
    assert load(UpOptions, {}).port == 8080


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TABPFN_SERVE_ENGINE_DEVISE", "cpu", "TABPFN_SERVE_ENGINE_DEVISE in the environment is no setting"),
        ("TABPFN_SERVE_DEVICE", "", "TABPFN_SERVE_DEVICE in the environment is no setting"),
        ("TABPFN_SERVE_ENGINE", "{}", "TABPFN_SERVE_ENGINE in the environment is no setting"),
        ("TABPFN_SERVE_STORE_MODELS", "[", "setting store.models: the text is not JSON: "),
        ("TABPFN_SERVE_STORE_MODELS", "{}", "setting store.models: must be a list, but is"),
        ("TABPFN_SERVE_STORE_MODELS", '[{"name": "a"}]', "setting store.models.0.uri: is missing"),
        (
            "TABPFN_SERVE_ENGINE_NUM_THREADS",
            "many",
            "setting engine.num_threads: must be a whole number, but is 'many'",
        ),
        (
            "TABPFN_SERVE_BATCHING_MAX_QUEUE_DELAY_MS",
            "inf",
            "setting batching.max_queue_delay_ms: must be a finite number",
        ),
        ("TABPFN_SERVE_NUM_REPLICAS", "0", "option --num-replicas: must be at least 1, but is '0'"),
        ("TABPFN_SERVE_PORT", "http", "option --port: "),
        ("TABPFN_SERVE_CONFIG", "absent.yaml", "cannot read absent.yaml: No such file or directory"),
    ],
)
def test_what_cannot_be_understood_ends_with_one_line(
    variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(["serve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tabpfn-serve: {reason}")
    assert variable in line or variable == "TABPFN_SERVE_CONFIG"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{engine: {devise: cpu}}", "unknown setting `engine.devise`; did you mean `engine.device`?"),
        (
            "{batching: {max_batch_row: 1}}",
            "unknown setting `batching.max_batch_row`; did you mean `batching.max_batch_rows`?",
        ),
        ("{batching: {num_threads: 1}}", "unknown setting `batching.num_threads`; did you mean `engine.num_threads`?"),
        ("{num_threads: 1}", "unknown setting `num_threads`; did you mean `engine.num_threads`?"),
        ("{engines: {}}", "unknown setting `engines`; did you mean `engine`?"),
        ("{port: 80}", "unknown setting `port`; valid here: engine, batching, api, store, metrics"),
        (
            "{store: {models: [{name: a, uri: /a, sha265: x}]}}",
            "unknown setting `store.models.0.sha265`; did you mean `store.models.0.sha256`?",
        ),
        ("{store: {models: [{name: a b, uri: /a}]}}", "setting store.models.0.name: must be 1 to 64 letters, digits"),
        ("{store: {models: [{name: a, uri: /a, sha256: x}]}}", "setting store.models.0.sha256: must be 64 hexadecimal"),
        ("{engine: {num_threads: many}}", "setting engine.num_threads: must be a whole number, but is 'many'"),
        ("{engine: {num_threads: 1.5}}", "setting engine.num_threads: must be a whole number, but is 1.5"),
        ("{engine: {worker_process: ja}}", "setting engine.worker_process: must be true or false, but is 'ja'"),
        ("{engine: {parity_tolerance: x}}", "setting engine.parity_tolerance: must be a number, but is 'x'"),
        ("{batching: {default_timeout_ms: 0}}", "setting batching.default_timeout_ms: must be above 0, but is 0"),
        ("{batching: {max_batch_rows: 99999}}", "setting batching.max_batch_rows: must be at most 32768, but is 99999"),
        ("{store: {model_repository: 7}}", "setting store.model_repository: must be a path, but is 7"),
        ("{store: {models: [7]}}", "setting store.models.0: must hold keys and values, such as `{key: value}`"),
        ("{metrics: {emf_namespace: 7}}", "setting metrics.emf_namespace: must be text, but is 7"),
        ("{engine: {device: gpu}}", "setting engine.device: 'gpu' is no device; write `cpu`, or one GPU"),
    ],
)  # fmt: skip
def test_a_fault_in_the_file_names_its_place_the_file_and_the_nearest_name(
    content: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(InvalidSettings) as refused:
        settings(config=str(file))
    message = str(refused.value)
    assert message.startswith(reason)
    assert message.endswith(f"(given in {file})")
    assert "\n" not in message


def test_a_file_that_is_no_yaml_says_where(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("engine:\n  device: [cpu\n")
    with pytest.raises(
        InvalidSettings, match=r"config.yaml is not YAML in UTF-8: .* at line 2, column 11: .*"
    ) as refused:
        settings(config=str(file))
    assert "unicode string" not in str(refused.value)


def test_a_misspelt_variable_is_told_its_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABPFN_SERVE_ENGINE_DEVISE", "cpu")
    with pytest.raises(InvalidSettings, match=r"did you mean TABPFN_SERVE_ENGINE_DEVICE\?"):
        settings()


def test_a_group_that_is_empty_in_the_file_has_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("engine:\nbatching: {max_batch_rows: 3}")
    given = settings(config=str(file))
    assert given.engine == ServerSettings().engine
    assert given.batching.max_batch_rows == 3


def test_variables_that_kubernetes_sets_for_a_service_of_this_name_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    service = {
        "TABPFN_SERVE_SERVICE_HOST": "10.0.0.7",
        "TABPFN_SERVE_SERVICE_PORT": "8080",
        "TABPFN_SERVE_SERVICE_PORT_HTTP": "8080",
        "TABPFN_SERVE_PORT": "tcp://10.0.0.7:8081",
        "TABPFN_SERVE_PORT_8080_TCP": "tcp://10.0.0.7:8080",
        "TABPFN_SERVE_PORT_8080_TCP_PROTO": "tcp",
        "TABPFN_SERVE_PORT_8080_TCP_PORT": "8080",
        "TABPFN_SERVE_PORT_8080_TCP_ADDR": "10.0.0.7",
    }
    without = load(ServeOptions, {})
    for name, value in service.items():
        monkeypatch.setenv(name, value)
    assert load(ServeOptions, {}) == without


def test_sagemakers_port_is_that_of_serve_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABPFN_SERVE_PORT", "8080")
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "9000")
    assert load(ServeOptions, {}).port == 9000
    assert load(ServeOptions, {"port": "9001"}).port == 9001
    assert load(UpOptions, {}).port == 8080


def test_the_settings_of_a_replica_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABPFN_SERVE_ENGINE_NUM_THREADS", "3")
    assert ServerSettings().engine.num_threads == 1
    assert ServerSettings.model_validate({}).engine.num_threads == 1
