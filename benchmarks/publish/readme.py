"""The table of results in README.md, between two markers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.publish.engine import ARCHITECTURES
from benchmarks.publish.markdown import Run, between, count, machine_of, ms, paragraph, percent, table, times
from benchmarks.publish.pages import link
from benchmarks.publish.peers import name_of

README = ROOT / "README.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
"""The markers. Between them stands nothing that a person wrote."""

Row = list[str]


def render_table(runs: Mapping[str, Run]) -> str:
    """The table with its markers, and a line that says where the figures were measured."""
    rows = [*_engine_rows(runs), _load_row(runs), _peers_row(runs), *_mixed_rows(runs), _overhead_row(runs)]
    measured = [run for run in runs.values() if run["kind"] not in ("simulation", "training-evaluate")]
    machines = " and ".join(dict.fromkeys(map(machine_of, measured)))
    dates = between(sorted(run["started_at"][:10] for run in measured), str)
    gpu = "" if any(run["machine"]["gpus"] for run in measured) else " No GPU was measured yet."
    note = paragraph(
        f"Measured {dates} on {machines}; the load generator shares the cores.{gpu} Every run, with its commit and "
        "command: [benchmarks/RESULTS.md](benchmarks/RESULTS.md)."
    )
    return f"{BEGIN}\n{table(['', 'tabpfn-serve', 'for comparison'], rows)}\n{note}{END}"


def replace_table(text: str, new: str) -> str:
    """The text of README.md with a new table. Raises ValueError if the markers are missing."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"README.md needs the two lines {BEGIN} and {END}, in this order: put them back")
    return text[:begin] + new + text[end + len(END) :]


def _engine_rows(runs: Mapping[str, Run]) -> list[Row]:
    """One row in one predict call, float32."""
    rows = []
    for name in ("engine-full-size", "offline-engine"):
        for each in runs[name]["results"]:
            if (each["rows"], each["backend"], each["precision"]) != (1, "compiled", "float32"):
                continue
            model = "demo model" if each["arch"] == "demo" else f"{ARCHITECTURES[each['arch']]} at full size"
            beside = f"tabpfn with KV cache {ms(each['tabpfn_ms'])} ms ({times(each['speedup'])})"
            if each.get("uncached_ms"):
                beside += f", without {ms(each['uncached_ms'])} ms ({times(each['speedup_uncached'])})"
            title = link(f"one row through the engine, {model}", name)
            rows.append([title, f"**{ms(each['compiled_ms'])} ms**", beside])
    return rows


def _load_row(runs: Mapping[str, Run]) -> Row:
    """Latency at the highest measured rate with p99 within the deadline, beside the lowest that supports a p99."""
    run = runs["online-load"]
    deadline_ms = run["config"]["deadline_ms"]
    in_time = [
        each
        for each in run["results"]
        if not each["void"] and each["latency"]["p99_reliable"] and each["latency"]["p99_ms"] <= deadline_ms
    ]
    by_rate = sorted(in_time, key=lambda each: float(each["rate"]))
    shown = [f"p50 {ms(each['latency']['p50_ms'])} ms, p99 {ms(each['latency']['p99_ms'])} ms" for each in by_rate]
    title = link(f"latency at {count(by_rate[-1]['rate'])} one-row requests per second", "online-load")
    return [title, f"**{shown[-1]}**", f"at {count(by_rate[0]['rate'])} per second: {shown[0]}"]


def _peers_row(runs: Mapping[str, Run]) -> Row:
    """The highest rate, with the best other server on each engine."""
    systems = runs["peers"]["systems"]
    own = [found for name, found in systems.items() if name in ("tabpfn-serve", "tabpfn-serve-uvicorn")]
    best = {}
    for engine in ("compiled", "tabpfn"):
        peers = {name: found for name, found in systems.items() if found["is_peer"] and found["engine"] == engine}
        best[engine] = max(peers, key=lambda name: _rate(systems[name]))
    compiled, tabpfn = (systems[best[engine]] for engine in ("compiled", "tabpfn"))
    beside = f"best other server: {name_of(best['compiled'])}, {count(_rate(compiled))}/s; "
    kept = f"{name_of(best['tabpfn'])}, {count(_rate(tabpfn))}/s" if _rate(tabpfn) else "none keeps p99 within 100 ms"
    beside += f"with tabpfn's own engine: {kept}"
    title = link("highest rate with p99 within 100 ms, demo model", "peers")
    return [title, f"**{count(max(map(_rate, own)))}/s**", beside]


def _rate(found: Mapping[str, Any]) -> float:
    return float(found["max_rate_p99_100ms"] or 0.0)


def _mixed_rows(runs: Mapping[str, Run]) -> list[Row]:
    """Bulk beside interactive requests, and overload."""
    shown = {
        name: f"{ms(run['mixed']['interactive_p99_ms_alone'])} ms alone, "
        f"{ms(run['mixed']['interactive_p99_ms_beside_bulk'])} ms beside bulk"
        for name, run in runs.items()
        if run["kind"] == "online-mixed"
    }
    others = "; ".join(f"{name_of(runs[name]['system'])}: {text}" for name, text in shown.items() if name != "mixed")
    rows = [[link("p99 of interactive requests", "mixed"), f"**{shown['mixed']}**", others]]
    overload, config = runs["mixed"]["overload"], runs["mixed"]["config"]
    title = link(f"goodput at {config['overload']:g} times the capacity", "mixed")
    beside = f"refusals have p99 {ms(overload['refusal_p99_ms'])} ms; {count(overload['unanswered'])} requests lost"
    return [*rows, [title, f"**{percent(overload['goodput_of_peak'])} of the peak**", beside]]


def _overhead_row(runs: Mapping[str, Run]) -> Row:
    """Throughput beside the bare engine, and the time added to a lone request."""
    systems = runs["overhead"]["systems"]
    edges = {"tabpfn-serve": "Ray", "tabpfn-serve-uvicorn": "uvicorn"}
    shares = [f"{percent(each['saturation']['share'])} ({edges[name]})" for name, each in systems.items()]
    added = [f"{ms(each['idle']['added_ms'])} ms ({edges[name]})" for name, each in systems.items()]
    title = link("throughput, of the bare engine's", "overhead")
    return [title, f"**{', '.join(shares)}**", f"added to a lone request: {', '.join(added)}"]
