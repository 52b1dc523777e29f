"""Metrics in CloudWatch's embedded metric format: valid by its specification, and true to what was counted."""

import asyncio
import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from serve.api.problems import INTERNAL_ERROR, STATUSES
from serve.telemetry.cloudwatch import (
    FAULTS,
    Document,
    Gauges,
    difference,
    documents,
    line_writer,
    publishing,
    snapshot,
)
from serve.telemetry.prometheus import PrometheusRecorder

QUIET = Gauges([0.0], [0.0], ready=1.0)
WITH_GPU = Gauges([3.0, 5.0], [0.0, 40.0], ready=1.0, gpu_memory_bytes=2.0e9, gpu_utilization=[0.5, 0.75])

_SIZES = (
    "Bytes",
    "Kilobytes",
    "Megabytes",
    "Gigabytes",
    "Terabytes",
    "Bits",
    "Kilobits",
    "Megabits",
    "Gigabits",
    "Terabits",
)
_PLAIN = {"Seconds", "Microseconds", "Milliseconds", "Percent", "Count", "None", "Count/Second"}
UNITS = {*_PLAIN, *(size.capitalize() + rate for size in _SIZES for rate in ("", "/Second"))}


def check_specification(document: Document) -> None:
    """The rules of AWS's "Specification: embedded metric format", each with its limit."""
    root = dict(document)
    metadata = root.pop("_aws")
    assert set(metadata) == {"Timestamp", "CloudWatchMetrics"}
    assert isinstance(metadata["Timestamp"], int)
    assert len(str(metadata["Timestamp"])) == 13, "milliseconds since 1970"
    for directive in metadata["CloudWatchMetrics"]:
        assert set(directive) == {"Namespace", "Dimensions", "Metrics"}
        assert re.fullmatch(r"[0-9A-Za-z.\-_/#:]{1,255}", directive["Namespace"])
        assert not directive["Namespace"].startswith("AWS/")
        for dimensions in directive["Dimensions"]:
            assert 1 <= len(dimensions) <= 30
            assert all(isinstance(root[name], str) and 1 <= len(root[name]) <= 1024 for name in dimensions)
        assert 1 <= len(directive["Metrics"]) <= 100
        for metric in directive["Metrics"]:
            assert set(metric) <= {"Name", "Unit", "StorageResolution"}
            assert metric["Unit"] in UNITS
            check_value(root[metric["Name"]])


def check_value(value: Any) -> None:
    numbers = value if isinstance(value, list | tuple) else [value]
    assert 1 <= len(numbers) <= 100
    assert all(isinstance(number, int | float) and abs(number) < 2**360 for number in numbers)


def made(metrics: PrometheusRecorder, before: Any, gauges: Gauges = QUIET) -> list[Document]:
    interval = difference(before, snapshot(metrics.registry))
    return list(
        documents(interval, gauges, namespace="TabPFNServe", service="tabpfn-gpu", timestamp_ms=1_764_028_800_000)
    )


def serve_some(metrics: PrometheusRecorder) -> None:
    for seconds in (0.004, 0.006, 0.006, 0.04):
        metrics.requests.labels("fraud", "ok").inc()
        metrics.request_seconds.labels("fraud").observe(seconds)
        metrics.queue_seconds.labels("fraud").observe(seconds / 2)
    metrics.requests.labels("churn", "overloaded").inc(2)
    metrics.refused_requests.labels("churn", "deadline").inc(2)
    metrics.requests.labels("fraud", "engine_error").inc()
    metrics.requests.labels("fraud", "wrong_type").inc()
    metrics.batch_rows.labels("fraud").observe(1)
    metrics.batch_rows.labels("fraud").observe(7)


def test_documents_hold_to_the_specification(metrics: PrometheusRecorder) -> None:
    before = snapshot(metrics.registry)
    serve_some(metrics)
    found = made(metrics, before, WITH_GPU)
    assert [(document["Service"], document.get("Model")) for document in found] == [
        ("tabpfn-gpu", None),
        ("tabpfn-gpu", "churn"),
        ("tabpfn-gpu", "fraud"),
    ]
    for document in found:
        check_specification(json.loads(json.dumps(document)))


def test_a_document_says_what_was_counted(metrics: PrometheusRecorder) -> None:
    before = snapshot(metrics.registry)
    serve_some(metrics)
    service, churn, fraud = made(metrics, before, WITH_GPU)
    assert service["Requests"] == 8
    assert service["RefusedRequests"] == churn["RefusedRequests"] == 2
    assert service["Errors5xx"] == fraud["Errors5xx"] == 1
    assert service["OngoingRequests"] == [3.0, 5.0]
    assert service["GpuMemory"] == 2.0e9
    assert service["GpuUtilization"] == [50.0, 75.0]
    assert service["BatchRows"] == 4
    assert 4 < fraud["RequestP50"] < 7.5
    assert 30 < fraud["RequestP99"] <= 50
    assert "RequestP50" not in churn, "nothing was answered, and no data is not zero"


def test_only_the_interval_counts(metrics: PrometheusRecorder) -> None:
    serve_some(metrics)
    (service,) = made(metrics, snapshot(metrics.registry))
    assert service["Requests"] == service["Errors5xx"] == 0
    assert "RequestP99" not in service
    assert not {"GpuMemory", "GpuUtilization"} & set(service)
    check_specification(service)


def test_what_is_beyond_the_buckets_has_the_highest_bound(metrics: PrometheusRecorder) -> None:
    before = snapshot(metrics.registry)
    metrics.request_seconds.labels("fraud").observe(60)
    metrics.requests.labels("fraud", "ok").inc()
    assert made(metrics, before)[0]["RequestP99"] == 10_000


def test_faults_are_what_callers_meet_as_5xx() -> None:
    assert {error.code for error, status in STATUSES.items() if status >= 500} | {INTERNAL_ERROR} == FAULTS


def test_a_line_is_written_in_one_piece(metrics: PrometheusRecorder) -> None:
    before = snapshot(metrics.registry)
    serve_some(metrics)
    full = Gauges([4096.0] * 30, [123_456.0] * 30, ready=1.0, gpu_memory_bytes=2.0e10, gpu_utilization=[0.57] * 30)
    for document in made(metrics, before, full):
        assert len(json.dumps(document)) < 4_096  # PIPE_BUF


async def test_it_publishes_each_interval_and_the_rest_at_the_end(metrics: PrometheusRecorder) -> None:
    lines: list[str] = []
    written = asyncio.Event()
    loop = asyncio.get_running_loop()

    def write(text: str) -> None:
        lines.append(text)
        loop.call_soon_threadsafe(written.set)

    metrics.queued_requests.set(2)
    metrics.in_flight_requests.set(1)
    metrics.gpu_memory_used_bytes.labels("cuda:0").set(3.0e9)
    metrics.gpu_utilization_ratio.labels("cuda:0").set(math.nan)  # a part of a GPU does not say
    async with publishing(metrics, write, namespace="N", service="s", interval_s=0.05):
        await written.wait()
        serve_some(metrics)
    first, *_ = [json.loads(line) for line in lines[0].splitlines()]
    assert set(first["OngoingRequests"]) == {3.0}
    assert first["GpuMemory"] == 3.0e9
    assert "GpuUtilization" not in first
    every = [json.loads(line) for line in "".join(lines).splitlines()]
    assert sum(document["Requests"] for document in every if "Model" not in document) == 8


async def test_a_broken_log_ends_no_server(metrics: PrometheusRecorder, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: str) -> None:
        raise OSError("gone")

    async with publishing(metrics, refuse, namespace="N", service="s", interval_s=0.01):
        await asyncio.sleep(0.1)
    assert "no longer published: gone" in caplog.text


async def test_nothing_is_published_unasked(metrics: PrometheusRecorder) -> None:
    async with publishing(metrics, None):
        assert len(asyncio.all_tasks()) == 1


def test_a_worker_writes_into_the_launchers_output(capfd: pytest.CaptureFixture[str]) -> None:
    line_writer(None)('{"a":1}\n')
    assert capfd.readouterr().out == '{"a":1}\n'

    reading, launchers = os.pipe()  # what a container's standard output is
    code = f"""
from pathlib import Path
from serve.telemetry.cloudwatch import line_writer
line_writer(Path("/proc/{os.getpid()}/fd/{launchers}"))('{{"b":2}}\\n{{"c":3}}\\n')
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert os.read(reading, 100) == b'{"b":2}\n{"c":3}\n'
    os.close(reading)
    os.close(launchers)
