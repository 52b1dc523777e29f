"""Cost of a batch on the simulated devices: `fixed_s + per_row_s * rows`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One device, the server settings that go with it, and the deadline of its callers.

    Attributes:
        max_batch_rows: follows the advice of the setting of this name: a full batch takes about half of the deadline
            or less.
        is_padded: a batch runs at the next power of two of rows, as the engine runs it.
        scatter: sigma of a log-normal factor of mean 1 on every batch's time; 0: every batch takes exactly its cost.
    """

    name: str
    fixed_s: float
    per_row_s: float
    max_batch_rows: int
    deadline_s: float
    is_padded: bool = True
    scatter: float = 0.0

    def seconds(self, num_rows: int) -> float:
        """Of one call of the engine, which divides more than `max_batch_rows` into batches, one after another."""
        num_full, rest = divmod(num_rows, self.max_batch_rows)
        seconds = num_full * self._batch_seconds(self.max_batch_rows)
        return seconds + self._batch_seconds(rest) if rest else seconds

    def _batch_seconds(self, num_rows: int) -> float:
        if self.is_padded:
            num_rows = min(1 << (num_rows - 1).bit_length(), self.max_batch_rows)
        return self.fixed_s + self.per_row_s * num_rows

    @property
    def buckets(self) -> dict[int, float]:
        """Seconds by row bucket, as the warm-up of a real engine measures them."""
        rows = [1 << power for power in range((self.max_batch_rows - 1).bit_length())] + [self.max_batch_rows]
        return {num_rows: self.seconds(num_rows) for num_rows in rows}

    @property
    def capacity_rows(self) -> float:
        """Rows per second in full batches of one context: no policy can get more out of the device."""
        return self.max_batch_rows / self.seconds(self.max_batch_rows)

    @property
    def capacity_alone(self) -> float:
        """One-row requests per second when each is a batch of its own."""
        return 1 / self.seconds(1)


DEVICES = {
    device.name: device
    for device in (
        # a GPU, assumed and not measured: a full batch costs less than twice as much as one row
        Device("gpu", fixed_s=0.003, per_row_s=0.00001, max_batch_rows=256, deadline_s=0.050),
        # the same with times that scatter, as on a GPU that is shared or hot
        Device(
            "gpu, times scatter", fixed_s=0.003, per_row_s=0.00001, max_batch_rows=256, deadline_s=0.050, scatter=0.2
        ),
        # the demo model on one CPU core, close to benchmarks/results/offline-engine.json
        Device("cpu-demo", fixed_s=0.005, per_row_s=0.0012, max_batch_rows=128, deadline_s=0.500),
        # the costs that the tests of serve/batching give to FakeEngine
        Device("fake", fixed_s=0.010, per_row_s=0.001, max_batch_rows=128, deadline_s=0.500, is_padded=False),
        # TabPFN v3.5 at full size on two CPU cores, close to benchmarks/results/engine-full-size.json
        Device("cpu-full", fixed_s=0.085, per_row_s=0.0137, max_batch_rows=64, deadline_s=3.0),
    )
}
