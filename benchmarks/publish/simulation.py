"""Section of the `simulation` run: batching policies under a virtual clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.publish.markdown import (
    NONE,
    Run,
    between,
    count,
    ms,
    options,
    paragraph,
    percent,
    provenance,
    table,
    times,
)
from benchmarks.simulation.summary import bulk_points, policies

Result = Mapping[str, Any]

LOADS = (
    ("gpu", "1-100 rows", "poisson", "Simulated GPU, requests of 1 to 100 rows, Poisson arrivals"),
    ("gpu", "1-100 rows", "bursty", "Simulated GPU, requests of 1 to 100 rows, bursts of four times the rate"),
    ("cpu-demo", "mixed", "poisson", "Simulated CPU, interactive requests beside 2 % bulk requests of 1,000 rows"),
)
SHOWN_LOADS = (0.5, 0.75, 1.0, 1.5)


def section(run: Run, name: str) -> str:
    """Tables of every experiment."""
    results = run["results"]
    total = sum(facts["requests"] for facts in run["speed"].values())
    lost = sum(each["lost"] for each in results)
    parts = [
        paragraph(
            f"{count(total)} simulated requests; {count(lost)} of those measured ended without an outcome. Tuned: with "
            "the best settings that a search over candidates found for the device; otherwise with default settings."
        ),
        _devices(run),
        *(_load(results, *each) for each in LOADS),
        _contexts(results),
        _bulk(run),
        _replicas(results),
        _soak(results),
        provenance(run, name, command(run)),
        _speed(run),
    ]
    return "\n".join(parts)


def _devices(run: Run) -> str:
    rows = [
        [
            f"`{name}`",
            f"{1e3 * each['fixed_s']:g} ms + {1e3 * each['per_row_s']:g} ms a row"
            + (", padded to a power of two" if each["is_padded"] else "")
            + (f", scattered (sigma {each['scatter']:g})" if each["scatter"] else ""),
            str(each["max_batch_rows"]),
            f"{1e3 * each['deadline_s']:,.0f}",
            count(each["capacity_rows_per_s"]),
        ]
        for name, each in run["config"]["devices"].items()
    ]
    head = ["device", "cost of a batch", "`max_batch_rows`", "deadline, ms", "capacity in full batches, rows/s"]
    return "### Simulated devices\n\nNo device is measured here; the GPU's costs are assumed.\n\n" + table(head, rows)


def _load(results: Sequence[Result], device: str, mix: str, arrivals: str, title: str) -> str:
    """Share answered in time, and p99, of interactive requests."""
    cells: dict[str, dict[float, str]] = {}
    for each in results:
        if [each["experiment"], each["device"], each["mix"], each["arrivals"]] == ["load", device, mix, arrivals]:
            found = each["interactive"]
            cells.setdefault(each["policy"], {})[each["load"]] = (
                f"{percent(found['goodput_share'], 1)}, {ms(found['p99_ms'])}"
            )
    head = ["policy", *(f"load {percent(load)}" for load in SHOWN_LOADS)]
    rows = [[policy, *(cells[policy].get(load, NONE) for load in SHOWN_LOADS)] for policy in cells]
    return (
        f"### {title}\n\nAnswered within the deadline, and p99 in ms, of interactive requests.\n\n{table(head, rows)}"
    )


def _contexts(results: Sequence[Result]) -> str:
    most = max((each["num_contexts"] for each in results if each["experiment"] == "contexts"), default=0)
    chosen = [each for each in results if each["experiment"] == "contexts" and each["num_contexts"] == most]
    by = {(each["device"], each["policy"]): each for each in chosen}
    devices = list(dict.fromkeys(device for device, _ in by))
    head = ["policy", *(f"`{device}`: in time, p99 ms, fairness" for device in devices)]
    rows = [[policy, *(_fairness(by.get((device, policy))) for device in devices)] for policy in policies(chosen)]
    note = paragraph(
        "One-row requests; rows of different contexts cannot share a batch. Fairness is Jain's index of the contexts' "
        "mean latencies: 1 if all are equal."
    )
    return f"### {most} contexts on one device\n\n{note}\n{table(head, rows)}"


def _fairness(each: Result | None) -> str:
    if each is None:
        return NONE
    index = each["fairness"]["jain_latency"]
    shown = NONE if index is None else f"{index:.2f}"
    return f"{percent(each['goodput_share'], 1)}, {ms(each['latency']['p99_ms'])}, {shown}"


def _bulk(run: Run) -> str:
    """For each device, interactive requests alone and beside bulk."""
    results = run["results"]
    points = bulk_points(results, run["config"]["devices"])
    with_bulk = {
        (each["device"], each["policy"], each["num_bulk_clients"] > 0): each
        for each in results
        if each["experiment"] == "bulk" and each["load"] is not None
    }
    head = ["device", "policy", "p99 alone, ms", "p99 beside bulk, ms", "ratio", "bulk, rows/s", "of the free capacity"]
    rows = [
        [
            f"`{device}`",
            policy,
            ms(with_bulk[device, policy, False]["interactive"]["p99_ms"]),
            ms(with_bulk[device, policy, True]["interactive"]["p99_ms"]),
            times(ratio),
            count(with_bulk[device, policy, True]["bulk_clients"]["rows_per_s"]),
            percent(share),
        ]
        for (device, policy), (share, ratio) in points.items()
    ]
    loads = between([each["load"] for each in with_bulk.values()] or [0.0], percent)
    note = paragraph(
        f"One-row interactive requests at {loads} load, beside callers of 1,000 rows each that never pause. Free "
        "capacity is what the interactive requests leave of the device's capacity in full batches."
    )
    return f"### Interactive requests beside bulk requests\n\n{note}\n{table(head, rows)}"


def _replicas(results: Sequence[Result]) -> str:
    chosen = [each for each in results if each["experiment"] == "replicas"]
    numbers = sorted({each["num_replicas"] for each in chosen})
    by = {(each["router"], each["stale_s"], each["num_replicas"]): each for each in chosen}
    routers = dict.fromkeys((router, stale_s) for router, stale_s, num in by if num > 1)
    rows = [
        [
            router + (f", numbers up to {1e3 * stale_s:g} ms old" if stale_s else ""),
            *(_in_time(by.get((router, stale_s, number))) for number in numbers),
        ]
        for router, stale_s in routers
    ]
    spread = [each for each in results if each["experiment"] == "replicas and contexts"]
    routed = [[each["router"], _in_time(each), f"{each['mean_batch_rows']:.2f}"] for each in spread]
    load = between([each["load"] for each in chosen] or [0.0], percent)
    note = f"Each replica at {load} load. Answered within the deadline, and p99 in ms, by number of replicas."
    routed_table = table(["router", "in time, p99 ms", "rows in a batch, mean"], routed)
    return (
        f"### Replicas of tabpfn-serve behind a router\n\n{note}\n\n{table(['router', *map(str, numbers)], rows)}\n"
        f"### Many contexts on several replicas\n\n{_routed_note(spread)}\n\n{routed_table}"
    )


def _routed_note(spread: Sequence[Result]) -> str:
    sizes = dict.fromkeys((each["num_contexts"], each["num_replicas"]) for each in spread)
    return "; ".join(f"{contexts} contexts on {replicas} replicas" for contexts, replicas in sizes) + "."


def _in_time(each: Result | None) -> str:
    return NONE if each is None else f"{percent(each['goodput_share'], 1)}, {ms(each['latency']['p99_ms'])}"


def _soak(results: Sequence[Result]) -> str:
    rows = [
        [
            percent(each["load"]),
            count(each["offered"]),
            percent(each["interactive"]["goodput_share"], 2),
            percent(each["bulk"]["goodput_share"], 1),
            *(count(each["outcomes"][kind]) for kind in ("refused", "expired", "failed")),
            count(each["lost"]),
        ]
        for each in results
        if each["experiment"] == "soak"
    ]
    head = ["load", "requests", "interactive in time", "bulk in time", "refused", "expired", "failed", "lost"]
    return "### Days of a slow server (`cpu-full`, tabpfn-serve)\n\n" + table(head, rows)


def _speed(run: Run) -> str:
    rows = [
        [
            name,
            count(each["runs"]),
            count(each["requests"]),
            f"{each['simulated_hours']:,.1f}",
            f"{each['wall_s']:,.0f}",
        ]
        for name, each in run["speed"].items()
    ]
    return "### Size of the run\n\n" + table(
        ["experiment", "runs", "requests", "simulated hours", "real seconds"], rows
    )


def command(run: Run) -> str:
    """The command that made the run."""
    return f"python -m benchmarks.simulation {options(run['config'], 'requests', 'seed')}"
