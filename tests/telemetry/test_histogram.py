"""The histogram that takes many values at once reads as prometheus_client's own."""

from __future__ import annotations

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from serve.telemetry.buckets import SECONDS_BUCKETS
from serve.telemetry.prometheus import Histogram

VALUES = st.lists(st.one_of(st.sampled_from(SECONDS_BUCKETS), st.floats(0, 100)), max_size=5)


@given(st.lists(st.tuples(st.sampled_from(["fraud", "price"]), VALUES), max_size=4))
def test_it_reads_as_the_librarys(batches: list[tuple[str, list[float]]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("seconds", "What it means.", ["model"], SECONDS_BUCKETS, ours)
    library = prometheus_client.Histogram(
        "seconds", "What it means.", ["model"], buckets=SECONDS_BUCKETS, registry=theirs
    )
    for model, values in batches:
        histogram.observe(values, model)
        series = library.labels(model)
        for value in values:
            series.observe(value)
    created = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == created


def test_without_labels_it_is_there_before_its_first_value() -> None:
    registry = CollectorRegistry()
    Histogram("seconds", "What it means.", [], [1.0], registry)
    assert registry.get_sample_value("seconds_count") == 0
