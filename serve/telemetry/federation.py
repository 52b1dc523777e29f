"""Joins the metrics of several replicas into one text exposition, each series with the label `replica`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

REPLICA_LABEL = "replica"


def merge(texts: Mapping[str, str], num_replicas: int) -> bytes:
    """One exposition of the texts by replica name, with one HELP and one TYPE per family.

    Two gauges are added: `tabpfn_replicas` is `num_replicas`, the replicas that were asked, and
    `tabpfn_replicas_scraped` the number of those that answered in time.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Joined(texts, num_replicas))
    return generate_latest(registry)


class _Joined(Collector):
    def __init__(self, texts: Mapping[str, str], num_replicas: int) -> None:
        self._texts = texts
        self._num_replicas = num_replicas

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("tabpfn_replicas", "Replicas asked for their metrics.", self._num_replicas)
        yield GaugeMetricFamily(
            "tabpfn_replicas_scraped", "Replicas that gave their metrics in time.", len(self._texts)
        )
        families: dict[tuple[str, str], Metric] = {}
        for replica, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text):
                joined = families.setdefault(
                    (family.name, family.type), Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, REPLICA_LABEL: replica}
                    joined.add_sample(sample.name, labels, sample.value, sample.timestamp, sample.exemplar)
        yield from families.values()
