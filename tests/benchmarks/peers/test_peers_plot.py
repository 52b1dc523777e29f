"""The plot of the peers' run says what was not sustained, and how much the rounds differ."""

from __future__ import annotations

import json
from typing import Any

from matplotlib.axes import Axes

from benchmarks.machine import ROOT
from benchmarks.peers.plot import draw_peers

RUN: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text())


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_rate_that_was_not_sustained_is_said_and_not_left_blank() -> None:
    rate, latency, cpu = draw_peers(RUN).axes
    systems = list(RUN["systems"].values())
    none_kept = [found for found in systems if not found["max_rate_p99_100ms"]]
    assert texts(rate).count("0") == len(none_kept) > 0
    load = "half_load" if RUN["rates"].get("half_load") else "half_load_compiled_engine"
    unmeasured = [found for found in systems if found[f"p99_ms_{load}"] is None]
    assert texts(latency).count("not sustained") == texts(cpu).count("not sustained") == len(unmeasured) > 0
    assert len(texts(rate)) == len(texts(latency)) == len(systems)


def test_the_spread_of_the_rounds_is_drawn() -> None:
    rate = draw_peers(RUN).axes[0]
    drawn = {tuple(float(x) for x in line.get_xdata()) for line in rate.lines}  # type: ignore[union-attr]
    for found in RUN["systems"].values():
        low, high = min(found["max_rates"]), max(found["max_rates"])
        assert ((low, high) in drawn) == (low < high)


def test_server_and_engine_are_named_and_every_panel_has_its_unit() -> None:
    figure = draw_peers(RUN)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(set(names)) == len(RUN["systems"])
    assert "tabpfn-serve (Ray), compiled" in names
    assert "tabpfn-serve (uvicorn), tabpfn" in names
    assert ["per second" in figure.axes[0].get_xlabel(), *("ms" in axes.get_xlabel() for axes in figure.axes[1:])] == [
        True
    ] * 3
    said = " ".join(text.get_text() for text in figure.legends[0].get_texts())
    assert "compiled: the engine of tabpfn-serve" in said
    assert "rounds" in said
