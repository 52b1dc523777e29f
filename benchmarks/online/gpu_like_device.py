"""The device of `benchmarks.online.gpu_like`: what a batch costs, when it runs, and when the device had nothing to do.

Only the one process that holds the device runs batches on it. It notes each batch in a file, from which the benchmark
reads how long the device was idle. The process learns of the device and of the file by an environment variable, so that
the server between the two knows nothing of either.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VARIABLE = "BENCHMARK_GPU_LIKE"
"""Environment variable: the device and the path of its notes, as `to_variable` writes them."""

GPU = "cuda:0"
"""The server is told this device, and so takes a GPU's row buckets."""

_NOTE = np.dtype([("began_at", "f8"), ("ended_at", "f8"), ("rows", "i8"), ("pid", "i8")])

Notes = NDArray[np.void]
"""The batches in order: `began_at` and `ended_at` on the clock of `time.monotonic`, `rows` with padding, and `pid`."""


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """A batch of n rows, padding included, takes `fixed_ms` and `per_row_us` for each row."""

    fixed_ms: float = 2.0
    per_row_us: float = 10.0

    def seconds(self, num_rows: int) -> float:
        """Time of one batch."""
        return self.fixed_ms / 1e3 + self.per_row_us / 1e6 * num_rows

    def rows_per_s(self, num_rows: int) -> float:
        """Rows per second in batches of this size, without a gap between them."""
        return num_rows / self.seconds(num_rows)

    def to_variable(self, notes: Path) -> dict[str, str]:
        """The variable that tells a process of this device, and where to note its batches."""
        return {VARIABLE: json.dumps({**asdict(self), "notes": str(notes)})}


class Timeline:
    """Runs one batch after another, in the order of the launches."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self._free_at = -math.inf

    def launch(self, num_rows: int, now: float) -> tuple[float, float]:
        """When a batch that is launched now begins, and when it ends."""
        began_at = max(now, self._free_at)
        self._free_at = began_at + self._device.seconds(num_rows)
        return began_at, self._free_at


class NotedTimeline:
    """The timeline of the device that the environment names; it notes every batch.

    Raises KeyError where the environment names no device.
    """

    def __init__(self) -> None:
        told: dict[str, Any] = json.loads(os.environ[VARIABLE])
        self._notes = os.open(told.pop("notes"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._timeline = Timeline(SimulatedDevice(**told))

    def launch(self, num_rows: int, now: float) -> float:
        """When a batch that is launched now ends."""
        began_at, ended_at = self._timeline.launch(num_rows, now)
        os.write(self._notes, np.array((began_at, ended_at, num_rows, os.getpid()), _NOTE).tobytes())
        return ended_at


def read_notes(path: Path) -> Notes:
    """All batches so far."""
    return np.fromfile(path, _NOTE)


def idle_share(notes: Notes, begin: float, end: float) -> float:
    """Share of the time from `begin` to `end` in which no batch was on the device."""
    busy = np.minimum(notes["ended_at"], end) - np.maximum(notes["began_at"], begin)
    return 1 - float(np.maximum(busy, 0).sum()) / (end - begin)


def count_batches(notes: Notes, begin: float, end: float) -> int:
    """Batches that ended from `begin` to `end`."""
    return int(((notes["ended_at"] >= begin) & (notes["ended_at"] <= end)).sum())
