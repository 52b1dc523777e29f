"""The circumstances of a measurement: machine, versions, commit. Every run's JSON states them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("tabpfn-serve", "tabpfn", "torch", "ray", "numpy", "fastapi", "uvicorn", "uvloop", "httptools")
ROOT = Path(__file__).resolve().parent.parent
_OUTPUTS = ("json", "plot", "logs", "from_json")


def envelope(
    kind: str, config: Mapping[str, Any], results: Sequence[Mapping[str, Any]], **extra: Any
) -> dict[str, Any]:
    """One run as it is written to JSON, begun now: `started_at` and the load average are of this moment.

    Args:
        config: every option of the run. Of a path only the last part is kept, and options that name outputs are left
            out: they say nothing of the numbers.
        extra: further entries, such as `server` and `ceiling`; they stand before the results.
    """
    return {
        "kind": kind,
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        **commit(),
        "config": {
            name: value.name if isinstance(value, Path) else value
            for name, value in config.items()
            if name not in _OUTPUTS
        },
        **extra,
        "results": list(results),
    }


def write_json(run: Mapping[str, Any], path: Path) -> None:
    """Write a run. Raises ValueError for NaN and infinity, so that every reader can parse the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Processor, memory, system and GPUs of the machine that this process runs on; no host name."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "cpu_quota": _cpu_quota(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": _os_name(),
        "gpus": _gpus(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def describe(facts: Mapping[str, Any]) -> str:
    """The machine in one line, for a plot's title."""
    gpus = [gpu["name"] for gpu in facts["gpus"]]
    gpu = f", {len(gpus)} x {gpus[0]}" if gpus else ""
    return f"{facts['cpu']}, {facts['usable_cores']} cores{gpu}"


def versions() -> dict[str, str | None]:
    """Versions of Python and of every package that can change a number; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> dict[str, Any]:
    """`commit` of the working tree, and whether it is `dirty`; None for both outside git or before a first commit."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "HEAD")
    if head is None:
        return {"commit": None, "dirty": None}
    # A run's own files under results/ do not make its code another code.
    status = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {"commit": head, "dirty": bool(status)}


def _cpu_model() -> str:
    text = _text(Path("/proc/cpuinfo")) or ""
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_quota() -> float | None:
    """Cores that the container may use (cgroup v2); None without a limit."""
    quota, _, period = (_text(Path("/sys/fs/cgroup/cpu.max")) or "max").strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _os_name() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release()}"


def _gpus() -> list[dict[str, str]]:
    """As nvidia-smi lists them, so that the load generator need not import torch."""
    if shutil.which("nvidia-smi") is None:
        return []
    lines = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    fields = ("name", "memory", "driver")
    return [dict(zip(fields, (cell.strip() for cell in line.split(",")), strict=False)) for line in _lines(lines)]


def _lines(text: str | None) -> list[str]:
    return text.splitlines() if text else []


def _output(*command: str) -> str | None:
    """The output of a command; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
