"""docs/deployment.md and docs/containers.md name only what exists: settings, scripts, modules, targets, stage keys."""

import importlib.util
import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from server_variables import server_variables

from deployment.settings import (
    CpuServiceSettings,
    GpuServiceSettings,
    LoadBalancerSettings,
    ObservabilitySettings,
    RegistrySettings,
    ServerSettings,
    stage_names,
)

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("deployment", "containers")}
TEXTS = {**PAGES, **{name: (ROOT / name).read_text() for name in ("Dockerfile.cpu", "Dockerfile.gpu")}}


@pytest.mark.parametrize("name", TEXTS)
def test_every_variable_is_a_setting_of_the_server(name: str) -> None:
    named = set(re.findall(r"TABPFN_SERVE_[A-Z0-9_]+", TEXTS[name]))
    named |= {f"TABPFN_SERVE{suffix}" for suffix in re.findall(r"`(_[A-Z0-9_]+)`", TEXTS[name])}
    assert named <= server_variables()
    assert named or name == "deployment"


@pytest.mark.parametrize("name", PAGES)
def test_every_command_exists(name: str) -> None:
    scripts = set(re.findall(r"\bscripts/[\w-]+", PAGES[name]))
    modules = set(re.findall(r"\bpython -m (deployment[\w.]*)", PAGES[name]))
    targets = set(re.findall(r"`make ([\w-]+)", PAGES[name]))
    paths = set(re.findall(r"`((?:deployment|tests)/[\w/.]+)`", PAGES[name]))
    assert scripts
    assert targets
    assert [path for path in scripts | paths if not (ROOT / path).exists()] == []
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.M)] == []


@pytest.mark.parametrize(
    ("prefix", "settings"),
    [
        ("gpu_service", GpuServiceSettings),
        ("cpu_service", CpuServiceSettings),
        ("load_balancer", LoadBalancerSettings),
        ("registry", RegistrySettings),
        ("server", ServerSettings),
        ("observability", ObservabilitySettings),
    ],
)
def test_every_key_of_a_stage_file_exists(prefix: str, settings: type[BaseModel]) -> None:
    assert set(re.findall(rf"`{prefix}\.(\w+)", PAGES["deployment"])) <= set(settings.model_fields)


def test_the_table_of_time_limits_has_the_default_settings() -> None:
    server, balancer = ServerSettings(), LoadBalancerSettings()
    table = PAGES["deployment"].partition("## Time limits")[2].partition("\n## ")[0]
    for words, value in {
        "deadline of a request": server.default_timeout_ms // 1_000,
        "lame duck": server.lame_duck_s,
        "drain (": server.drain_timeout_s,
        "deregistration delay": balancer.deregistration_delay_s,
        "idle timeout": balancer.idle_timeout_s,
        "keep-alive": server.keep_alive_s,
        "stop timeout": server.stop_s,
    }.items():
        assert re.search(rf"^\| {re.escape(words)}[^|]*\| {value} s \|", table, re.M), words
    assert f"5 + 1 + 30 + 20 = {server.stop_s} s" in PAGES["containers"]


def test_the_page_names_every_stage() -> None:
    assert [name for name in stage_names() if f"| `{name}` |" not in PAGES["deployment"]] == []
