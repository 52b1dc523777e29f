"""The recorders of one replica: Prometheus always, CloudWatch where the settings ask for it."""

from __future__ import annotations

from serve.settings import MetricsSettings
from serve.telemetry.cloudwatch import CloudWatchRecorder
from serve.telemetry.prometheus import PrometheusRecorder
from serve.telemetry.recorder import Recorder, RecorderGroup


class Telemetry:
    """Holds the recorders; the replica reports to `recorder`, which passes every event to all of them."""

    def __init__(self, settings: MetricsSettings | None = None) -> None:
        self.prometheus = PrometheusRecorder()
        self.cloudwatch: CloudWatchRecorder | None = None
        self.recorder: Recorder = self.prometheus
        if settings is not None and settings.emf_namespace is not None:
            self.cloudwatch = CloudWatchRecorder()
            self.recorder = RecorderGroup([self.prometheus, self.cloudwatch])
