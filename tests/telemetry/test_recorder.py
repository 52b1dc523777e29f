"""Requests that are reported together count as those that are reported one by one."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from serve.telemetry.prometheus import PrometheusRecorder
from serve.telemetry.recorder import Recorder, RecorderGroup

OUTCOMES = st.sampled_from(["ok", "overloaded"])
SECONDS = st.lists(st.sampled_from([2**-9, 0.25, 40.0]), min_size=1, max_size=4)


def counted(recorder: PrometheusRecorder) -> list[str]:
    """What `/metrics` says, less the times at which series were made."""
    return [line for line in recorder.render().decode().splitlines() if "_created" not in line]


class Listed(Recorder):
    """A recorder with no quicker way of its own."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, float]] = []

    def answered(self, model: str, outcome: str, seconds: Sequence[float]) -> None:
        self.seen += [(model, outcome, each) for each in seconds]


@given(st.lists(st.tuples(OUTCOMES, SECONDS), max_size=4))
def test_together_and_one_by_one(reports: list[tuple[str, list[float]]]) -> None:
    together, alone, listed = PrometheusRecorder(), PrometheusRecorder(), Listed()
    group = RecorderGroup([together, listed])
    for outcome, seconds in reports:
        group.answered("fraud", outcome, seconds)
        for each in seconds:
            alone.answered("fraud", outcome, [each])
    assert listed.seen == [("fraud", outcome, each) for outcome, seconds in reports for each in seconds]
    assert counted(together) == counted(alone)
