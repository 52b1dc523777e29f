"""`scripts/gpu-run`: its steps, what becomes of one that fails or hangs, and a whole dry run on a CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "gpu-run"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("gpu_run", str(SCRIPT))
    spec = spec_from_loader("gpu_run", loader)
    assert spec is not None
    module, before = module_from_spec(spec), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the script stands alone in its folder
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def test_every_wheel_has_its_version(script: ModuleType) -> None:
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert set(script.PACKAGES) <= pinned


def test_the_steps_take_less_than_ten_minutes(script: ModuleType, tmp_path: Path) -> None:
    steps = script.steps("cuda:0", tmp_path)
    assert [name for name, _, _ in steps] == ["tests", "probe", "engine", "engine, full size"]
    assert sum(limit_s for _, limit_s, _ in steps) < 600
    assert all((ROOT / path).exists() for path in script.TESTS)


@pytest.mark.parametrize(
    ("code", "limit_s", "status", "said"),
    [
        ("print('done')", 60, 0, "ok after"),
        ("print('done'); raise SystemExit(3)", 60, 3, "FAILED after"),
        ("import signal; print('done', flush=True); signal.pause()", 5, None, "out of time after"),
    ],
)
def test_a_step_is_ok_or_failed_or_out_of_time(
    script: ModuleType, tmp_path: Path, code: str, limit_s: float, status: int | None, said: str
) -> None:
    log = tmp_path / "step.log"
    step = script.run_step([sys.executable, "-c", code], limit_s, log, dict(os.environ))
    assert (step["status"], step["limit_s"], step["log"]) == (status, limit_s, "step.log")
    assert script.describe(step).startswith(said)
    assert log.read_text().strip() == "done"


@pytest.mark.slow
def test_a_dry_run_on_a_cpu_does_every_step(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "run", "--device", "cpu"]
    variables = {**os.environ, "OUT": str(tmp_path)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: step["status"] for name, step in summary["steps"].items()} == {"tests": 0, "probe": 0, "engine": 0}
    assert [facts["model"] for facts in json.loads((tmp_path / "probe.json").read_text())["results"]] == [
        "demo", "demo", "v2", "v2",
    ]  # fmt: skip
    assert json.loads((tmp_path / "engine.json").read_text())["results"]
    assert re.search(r'skipped="[1-9]', (tmp_path / "tests.xml").read_text()), "the tests that wait for a GPU"


def test_a_folder_for_the_results_is_asked_for() -> None:
    variables = {name: value for name, value in os.environ.items() if name != "OUT"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "run"], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--out" in done.stderr
