"""What the online commands have in common: help, earlier runs, and one line where something is wrong."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import ROOT
from benchmarks.online import demo
from benchmarks.online.client import Exchange
from benchmarks.online.errors import StartFailed
from benchmarks.online.target import describe_outcome

MODULES = (
    "benchmarks.online.load", "benchmarks.online.demo", "benchmarks.online.search", "benchmarks.online.mixed",
    "benchmarks.online.overhead", "benchmarks.online.gpu_like", "benchmarks.online.hostile", "benchmarks.online.mlperf",
    "benchmarks.peers.__main__",
)  # fmt: skip
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("name", MODULES)
def test_help_explains_every_option_with_its_default_and_choices(name: str) -> None:
    parser: argparse.ArgumentParser = importlib.import_module(name).make_parser()
    shown = " ".join(parser.format_help().split()).replace("- ", "-")
    for action in parser._actions:
        assert action.help, action.option_strings
        for choice in action.choices or ():
            assert str(choice) in shown
        if action.default is not None and not isinstance(action.default, bool | str):
            default = " ".join(map(str, action.default)) if isinstance(action.default, list) else str(action.default)
            assert f"(default: {default})" in shown, action.option_strings
    assert shown.startswith(f"usage: {parser.prog}")


PUBLISHED = [
    ("benchmarks.online.load", "online-load", "goodput/s"),
    ("benchmarks.online.demo", "online-load", "goodput/s"),
    ("benchmarks.online.mixed", "mixed", "interactive_p99_ms_beside_bulk"),
    ("benchmarks.online.overhead", "overhead", "tabpfn-serve-uvicorn"),
    ("benchmarks.online.mlperf", "mlperf", "LoadGen says"),
    ("benchmarks.peers.__main__", "peers", "rate/s: highest rate whose p99 stays within 100 ms"),
]


@pytest.mark.parametrize(("name", "run", "said"), PUBLISHED)
def test_an_earlier_run_is_printed_and_drawn_without_a_measurement(
    name: str, run: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Callable[[list[str]], int] = importlib.import_module(name).main
    before = signal.getsignal(signal.SIGTERM)
    try:
        main(["--from-json", str(RESULTS / f"{run}.json"), "--plot", str(tmp_path / "run.png")])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said in capsys.readouterr().out
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("source", ["absent.json", str(RESULTS / "simulation.json")])
def test_a_run_that_cannot_be_read_is_named(name: str, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    main: Callable[[list[str]], int] = importlib.import_module(name).main
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["--from-json", source])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert source in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["load", "search", "mlperf", "mixed"])
def test_a_server_that_is_down_is_named_with_what_to_do(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # bound but not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["--url", url] + (["--nice", "0"] if name != "mlperf" else [])
        with pytest.raises(SystemExit) as stop:
            importlib.import_module(f"benchmarks.online.{name}").main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"no server answers at {url} (Connection refused): start one with `tabpfn-serve up`" in said
    assert said.count("\n") == 1


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(SystemExit) as stop:
        importlib.import_module("benchmarks.online.mlperf").main([])
    assert stop.value.code == 2
    assert "the package mlcommons-loadgen is missing: install it" in capsys.readouterr().err


def test_an_outcome_in_words_shows_the_detail_of_a_problem() -> None:
    refused = Exchange(0.0, b"")
    refused.status, refused.body = 422, json.dumps({"detail": "row 0, column 'amount'", "code": "x"}).encode()
    assert describe_outcome(refused) == "422: row 0, column 'amount'"
    for body in (b"no JSON", b"[1]", b'{"code": "x"}'):
        refused.body = body
        assert describe_outcome(refused) == f"422: {body.decode()}"
    lost = Exchange(0.0, b"")
    lost.error = "timeout"
    assert describe_outcome(lost) == "by no answer: timeout"


# --- a server that the demo starts ------------------------------------------------------------------------------------

_SERVER = """
import signal, sys
print("loading", flush=True)
{ready}
signal.sigwait([signal.SIGTERM])
sys.exit({code})
"""


def pretend(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> None:
    """Have `running_server` start a small program in the place of the server."""
    program = _SERVER.format(**{"ready": "print('ready at http://127.0.0.1:1', flush=True)", "code": 0, **parts})
    popen = demo.subprocess.Popen
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    monkeypatch.setattr(
        "benchmarks.online.demo.subprocess.Popen",
        lambda _, **more: popen([sys.executable, "-c", block + program], **more),
    )


def test_the_demo_waits_for_the_line_that_says_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with demo.running_server("up") as url:
        assert url == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"ready": "sys.exit(3)"}, "ended with 3 before it was ready"),
        ({"code": 4}, "ended with 4 at SIGTERM instead of 0"),
    ],
)
def test_a_server_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any], message: str) -> None:
    pretend(monkeypatch, **parts)
    with pytest.raises(StartFailed, match=message), demo.running_server("up"):
        pass
