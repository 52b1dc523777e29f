"""An `online-load` run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEAD = (
    "rate/s", "sent", "200", "other", "error", "p50 ms", "p90 ms", "p99 ms", "max ms", "goodput/s",
    "batch rows", "queue", "compute", "overhead", "outside", "lag p99",
)  # fmt: skip


def table(run: Mapping[str, Any]) -> str:
    """A line for each rate, and one for each reason to distrust a rate. `~`: too few answers for this percentile."""
    rows = [_HEAD, *(_row(result) for result in run["results"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for result in run["results"]:
        lines += [f"VOID at {result['rate']:g}/s: {reason}" for reason in result["void_reasons"]]
        for error, count in result["errors"].items():
            lines.append(f"errors at {result['rate']:g}/s: {count} x {error}")
    return "\n".join(lines)


def _row(result: Mapping[str, Any]) -> tuple[str, ...]:
    latency, server = result["latency"], result["server_ms"]
    return (
        f"{result['rate']:g}",
        str(result["sent"]),
        str(result["ok"]),
        str(result["answered"] - result["ok"]),
        str(sum(result["errors"].values())),
        *(_number(latency[f"p{p}_ms"]) + ("" if latency[f"p{p}_reliable"] else "~") for p in (50, 90, 99)),
        _number(latency["max_ms"]),
        _number(result["goodput_per_s"]),
        _number(result["batch_rows"]["per_batch"]),
        *(_number(server[part]) for part in ("queue", "compute", "overhead")),
        _number(result["outside_ms"]),
        _number(result["send_lag"]["p99_ms"]),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
