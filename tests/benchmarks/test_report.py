"""Plots come from a run's JSON alone."""

from __future__ import annotations

import copy
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import DPI
from benchmarks.machine import ROOT, commit, describe, envelope, machine, write_json
from benchmarks.offline.plot import SIZE_INCHES as ENGINE_SIZE_INCHES
from benchmarks.online.load_plot import SIZE_INCHES
from benchmarks.report import PLOTS, digest, main, plot


def load_result(rate: float, **changes: Any) -> dict[str, Any]:
    latency = {"n": 400, "mean_ms": 9.0, "max_ms": 80.0}
    for percent, value in ((50, 8.0), (90, 20.0), (99, 60.0)):
        latency |= {f"p{percent}_ms": value + rate / 10, f"p{percent}_reliable": percent < 99}
    return {
        "rate": rate, "scheduled": int(rate * 20), "ok_per_s": rate, "goodput_per_s": rate * 0.9, "latency": latency,
        "batch_rows": {"per_row": 5.0, "per_request": 5.0, "per_batch": 3.0, "max": 9.0}, "void": False, **changes,
    }  # fmt: skip


def load_run() -> dict[str, Any]:
    config = {"model": "fraud", "deadline_ms": 100.0, "duration": 20.0}
    return envelope("online-load", config, [load_result(rate) for rate in (20.0, 80.0, 40.0)], server={})


def engine_result(arch: str, case: str, rows: int, precision: str) -> dict[str, Any]:
    uncached = {"uncached_ms": 60.0, "speedup_uncached": 12.0} if arch == "demo" else {}
    return {
        "arch": arch, "case": case, "rows": rows, "precision": precision, "device": "cpu", "backend": "compiled",
        "compiled_ms": 5.0 * rows, "tabpfn_ms": 5.5 * rows, "speedup": 1.1, **uncached,
    }  # fmt: skip


def engine_run(*archs: str) -> dict[str, Any]:
    results = [
        engine_result(arch, f"{arch} {size}", rows, precision)
        for arch in archs
        for size in ("1000x30", "1000x100")
        for precision in ("float32", "bfloat16")
        for rows in (1, 8, 100)
    ]
    return envelope("offline-engine", {}, results)


def size_of(png: Path) -> tuple[int, int]:
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def drawn(run: dict[str, Any], folder: Path) -> Path:
    to_json, to_png = folder / "run.json", folder / "deep" / "run.png"
    write_json(run, to_json)
    main([str(to_json), str(to_png)])
    assert to_png.stat().st_size > 10_000
    return to_png


def test_the_json_of_a_run_names_no_folders() -> None:
    given = {"records": Path("/home/somebody/cards.jsonl"), "json": Path("/tmp/run.json"), "logs": None, "seed": 1}
    assert envelope("online-load", given, [])["config"] == {"records": "cards.jsonl", "seed": 1}


def test_a_plot_is_drawn_from_the_json(tmp_path: Path) -> None:
    assert size_of(drawn(load_run(), tmp_path)) == tuple(round(inches * DPI) for inches in SIZE_INCHES)


@pytest.mark.parametrize("archs", [("demo",), ("demo", "v2", "v3_5")])
def test_each_architecture_has_a_row_of_panels(archs: tuple[str, ...], tmp_path: Path) -> None:
    width, height = ENGINE_SIZE_INCHES
    assert size_of(drawn(engine_run(*archs), tmp_path)) == (round(width * DPI), round(height * len(archs) * DPI))


def test_a_run_of_an_older_release_is_still_drawn(tmp_path: Path) -> None:
    run = engine_run("demo")
    for result in run["results"]:
        for name in ("arch", "precision", "device", "backend"):
            del result[name]
    drawn(run, tmp_path)


def test_a_rate_without_answers_is_left_out_of_the_lines(tmp_path: Path) -> None:
    run = copy.deepcopy(load_run())
    silent = run["results"][0]
    silent["latency"] |= {"p50_ms": None, "p90_ms": None, "p99_ms": None}
    silent["batch_rows"]["per_batch"] = None
    silent["void"] = True
    plot(run, tmp_path / "run.png")
    assert size_of(tmp_path / "run.png") == (990, 990)


def test_a_plot_names_the_json_that_it_was_drawn_from(tmp_path: Path) -> None:
    run = load_run()
    assert digest(run).encode() in drawn(run, tmp_path).read_bytes()
    assert digest(json.loads(json.dumps(run))) == digest(run)
    run["results"][0]["rate"] += 1
    assert digest(run).encode() not in (tmp_path / "deep" / "run.png").read_bytes()


def test_no_plot_imports_the_report_that_draws_it() -> None:
    modules = sorted({draw.__module__ for draw in PLOTS.values()})
    assert "benchmarks.offline.plot" in modules
    check = f"import sys, {', '.join(modules)}; sys.exit('benchmarks.report' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


def test_a_file_that_cannot_be_drawn_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"kind": "other"}, tmp_path / "other.json")
    for name, said in (("absent.json", "JSON files in that folder: other.json"), ("other.json", "these can be drawn")):
        with pytest.raises(SystemExit) as stop:
            main([str(tmp_path / name), str(tmp_path / "run.png")])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no plot"):
        plot({"kind": "other"}, tmp_path / "run.png")


def test_none_is_written_as_null_and_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json({"value": float("nan")}, tmp_path / "run.json")
    write_json({"value": None}, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text()) == {"value": None}


def test_the_machine_is_described_without_its_host_name() -> None:
    facts = machine()
    assert facts["usable_cores"] >= 1
    assert facts["memory_bytes"] > 2**28
    assert "host" not in " ".join(facts)
    assert facts["cpu"] in describe(facts)
    gpu = {"name": "GPU X", "memory": "1", "driver": "2"}
    assert describe({**facts, "gpus": [gpu, gpu]}).endswith("cores, 2 x GPU X")


def test_the_commit_is_a_hash_or_null() -> None:
    found = commit()
    assert set(found) == {"commit", "dirty"}
    assert found["commit"] is None or (len(found["commit"]) == 40 and isinstance(found["dirty"], bool))
