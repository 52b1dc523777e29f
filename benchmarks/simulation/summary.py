"""Numbers that follow from a run's JSON, for its plot and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def policies(results: Sequence[Result]) -> list[str]:
    """The policies of a run, in the order of the results."""
    return list(dict.fromkeys(each["policy"] for each in results))


def bulk_points(results: Sequence[Result], devices: Mapping[str, Any]) -> dict[tuple[str, str], tuple[float, float]]:
    """By (device, policy): bulk rows as a share of the room that interactive leaves, and p99 with over without bulk."""
    chosen = [r for r in results if r["experiment"] == "bulk" and r["load"] is not None]
    by = {(r["device"], r["policy"], r["num_bulk_clients"] > 0): r for r in chosen}
    points = {}
    for (device, policy, has_bulk), result in by.items():
        if has_bulk:
            room = devices[device]["capacity_rows_per_s"] * (1 - result["load"])
            ratio = result["interactive"]["p99_ms"] / by[device, policy, False]["interactive"]["p99_ms"]
            points[device, policy] = (result["bulk_clients"]["rows_per_s"] / room, ratio)
    return points
