"""The recorders of one replica: Prometheus always, CloudWatch where the settings ask for it."""

from __future__ import annotations

from serve.telemetry.cloudwatch import CloudWatchRecorder
from serve.telemetry.prometheus import PrometheusRecorder
from serve.telemetry.recorder import Recorder, RecorderGroup


class Telemetry:
    """Holds the recorders; the replica reports to `recorder`, which passes every event to all of them.

    Args:
        publishes_to_cloudwatch: count for CloudWatch too.
    """

    def __init__(self, *, publishes_to_cloudwatch: bool = False) -> None:
        self.prometheus = PrometheusRecorder()
        self.cloudwatch: CloudWatchRecorder | None = None
        self.recorder: Recorder = self.prometheus
        if publishes_to_cloudwatch:
            self.cloudwatch = CloudWatchRecorder()
            self.recorder = RecorderGroup([self.prometheus, self.cloudwatch])
