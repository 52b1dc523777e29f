"""The benchmark of callers that mean no good: what they send, what is counted, and a short run against a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from edge_harness import wait_until
from edges.guard_harness import get, serving

from benchmarks.online import hostile
from benchmarks.online.errors import StartFailed
from benchmarks.online.hostile import attacks_of, main, make_parser, summarise_rounds, table
from benchmarks.online.hostile_callers import Attack, HostileCallers


def test_the_open_files_bound_the_idle_connections_alone() -> None:
    attack = Attack(floods=1, stalls=40, idle=10_000)
    assert attack.within(20_000) == attack
    assert attack.within(1_024) == Attack(1, 40, 783)
    assert attack.within(100) == Attack(1, 40, 0)


def test_every_attack_alone_and_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "permitted_open_files", lambda: 1_000)
    given = make_parser().parse_args(["--floods", "2", "--stalls", "3", "--idle", "5000"])
    assert attacks_of(given) == {
        "headers": Attack(floods=2),
        "bodies": Attack(stalls=3),
        "idle": Attack(idle=800),
        "all": Attack(2, 3, 795),
    }


def offered(attack: str, number: int, p99_ms: float, rss_bytes: int = 100, **more: int) -> dict[str, object]:
    counts = {"scheduled": 10, "ok": 9, "cpu_share": 0.1, "rss_bytes": rss_bytes}
    return {"attack": attack, "round": number, "latency": {"p99_ms": p99_ms}, **counts, **more}


def test_a_ratio_is_to_the_same_round_alone() -> None:
    results = [offered("alone", number, p99) for number, p99 in enumerate((10.0, 20.0, 100.0))]
    results += [
        offered("idle", number, p99, 100 + number, idle_connections=50 - number)
        for number, p99 in enumerate((15.0, 40.0, 90.0))
    ]
    summary = summarise_rounds(results)
    assert summary["attacks"]["alone"]["p99_ratio"] == 1
    assert summary["attacks"]["idle"] == {
        "p99_ms": 40, "p99_ratio": 1.5, "cpu_share": 0.1, "unanswered": 3, "rss_bytes": 102, "idle_connections": 48,
    }  # fmt: skip
    lines = table({"summary": {**summary, "rss_before_bytes": 2e6, "rss_after_bytes": 3e6}}).splitlines()
    assert lines[2].split() == ["idle", "40.0", "1.50", "0.100", "3", "0", "48"]
    assert lines[3] == "RSS before the first attack 2 MB, after the last 3 MB"


def test_they_attack_until_the_end_and_come_again() -> None:
    with serving(max_connections=1_000) as server:
        with HostileCallers("127.0.0.1", server.port, Attack(floods=1, stalls=2, idle=20, body_bytes=2**20)) as callers:
            assert callers.ready() == 20
            ended = 'tabpfn_ended_connections_total{{reason="{}"}}'
            wait_until(lambda: server.metric(ended.format("headers_too_large")) >= 2)
            wait_until(lambda: sum(c.num_part_bytes >= 2**19 for c in server.call(server.connections)) == 2)
            server.pass_time(2_000)
            wait_until(lambda: server.metric(ended.format("request_timeout")) == 2)
            wait_until(lambda: len(server.call(server.connections)) >= 20)
            assert server.connect().send(get()).answer().status == 200
        wait_until(lambda: len(server.call(server.connections)) <= 3)


def test_callers_that_cannot_run_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.online.hostile_callers._READY_S", 0.0)
    with pytest.raises(StartFailed, match="did not begin"), HostileCallers("127.0.0.1", 1, Attack()) as callers:
        callers.ready()


def test_a_short_run_measures_each_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hostile, "_REST_S", 0.0)
    monkeypatch.setattr(hostile, "stop_at_sigterm", lambda: None)
    to_json = tmp_path / "hostile.json"
    short = "--rounds 1 --rate 20 --duration 0.5 --warmup 0.1 --stalls 2 --idle 30 --nice 0"
    assert main([*short.split(), "--json", str(to_json)]) == 0
    run = json.loads(to_json.read_text())
    assert (run["kind"], run["idle_connections"]) == ("online-hostile", 30)
    assert [each["attack"] for each in run["results"]] == ["alone", "headers", "bodies", "idle", "all"]
    assert all(each["ok"] for each in run["results"])
    assert run["summary"]["attacks"]["all"]["idle_connections"] == 30
    said = capsys.readouterr().out
    assert main(["--from-json", str(to_json)]) == 0
    assert capsys.readouterr().out == said
