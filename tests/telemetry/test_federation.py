"""The metrics of several replicas in one text."""

import math
from collections import Counter

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serve.telemetry.federation import merge
from serve.telemetry.prometheus import PrometheusRecorder


def text_of(num_requests: int, model: str = "fraud") -> str:
    recorder = PrometheusRecorder()
    for _ in range(num_requests):
        recorder.answered(model, "ok", [0.01])
    return recorder.render().decode()


def samples(exposition: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample; none may be there twice."""
    found = [
        ((sample.name, frozenset(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def value(exposition: bytes, name: str, **labels: str) -> float:
    return samples(exposition)[name, frozenset(labels.items())]


def test_each_series_has_the_label_of_its_replica_and_its_value() -> None:
    merged = merge({"a": text_of(2), "b": text_of(3)}, 2)
    assert value(merged, "tabpfn_requests_total", model="fraud", outcome="ok", replica="a") == 2
    assert value(merged, "tabpfn_requests_total", model="fraud", outcome="ok", replica="b") == 3
    assert value(merged, "tabpfn_request_seconds_bucket", model="fraud", le="0.01", replica="b") == 3
    unlabelled = [name for name, labels in samples(merged) if "replica" not in dict(labels)]
    assert sorted(unlabelled) == ["tabpfn_replicas", "tabpfn_replicas_scraped"]


def test_nothing_of_a_replica_is_lost() -> None:
    text = text_of(4)
    expected = {
        (name, labels | {("replica", "a")}): number for (name, labels), number in samples(text.encode()).items()
    }
    merged = samples(merge({"a": text}, 1))
    assert expected.items() <= merged.items()
    assert len(merged) == len(expected) + 2


def test_a_family_has_one_help_and_one_type() -> None:
    lines = merge({name: text_of(1) for name in "abc"}, 3).decode().splitlines()
    headers = Counter(" ".join(line.split()[:3]) for line in lines if line.startswith("#"))
    assert "# HELP tabpfn_requests_total" in headers
    assert set(headers.values()) == {1}


def test_series_of_one_family_stand_together() -> None:
    names = [
        family.name for family in text_string_to_metric_families(merge({"a": text_of(1), "b": text_of(1)}, 2).decode())
    ]
    assert len(names) == len(set(names))


def test_a_family_that_only_one_replica_has_is_kept() -> None:
    registry = CollectorRegistry()
    Gauge("only_here", "Of one.", registry=registry).set(7)
    merged = merge({"a": text_of(1), "b": generate_latest(registry).decode()}, 2)
    assert value(merged, "only_here", replica="b") == 7


def test_a_replica_that_did_not_answer_is_counted() -> None:
    merged = merge({"a": text_of(1)}, 3)
    assert (value(merged, "tabpfn_replicas"), value(merged, "tabpfn_replicas_scraped")) == (3, 1)


def test_odd_names_and_values_survive() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("odd", 'A "quoted" \\ help\nof two lines.', ("model",), registry=registry)
    gauge.labels('a"b\\c\nd').set(math.inf)
    merged = merge({'r"1': generate_latest(registry).decode()}, 1)
    assert value(merged, "odd", model='a"b\\c\nd', replica='r"1') == math.inf
