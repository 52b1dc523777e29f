"""The engine of `benchmarks.online.gpu_like`: the server's own, but for the forward pass, in whose place time passes.

`python -m benchmarks.online.gpu_like_engine FD LOG_LEVEL ROWS_FD` is the worker process with this engine. It fits the
context, pads a batch to the row buckets of a GPU, prepares its rows and corrects its outputs as `TabPFNEngine` does.
The forward pass alone is missing: the batch occupies a `Timeline`, and its outputs are made up when it ends.

Who waits for a batch sleeps, as with CUDA's blocking events. A loop that looks at the clock would be more exact by some
50 us, but it would hold Python's lock while the next batch is prepared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.online.gpu_like_device import GPU, NotedTimeline
from serve.core import Batch, Launched, Matrix, ModelDefinition
from serve.core.errors import InvalidModel
from serve.core.row_buckets import row_buckets
from serve.engine.compiled import CompiledEnsemble
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.worker.server import run
from serve.settings import EngineSettings


class GpuLikeEngine(TabPFNEngine):
    """TabPFNEngine for classifiers with a simulated device. It runs on the CPU, whatever device the settings name."""

    def __init__(self, settings: EngineSettings, max_batch_rows: int = 256) -> None:
        super().__init__(settings.model_copy(update={"device": "cpu"}), max_batch_rows)
        self._buckets = row_buckets(max_batch_rows, GPU)
        self._timeline = NotedTimeline()

    @property
    def max_in_flight(self) -> int:
        return 2

    def fit(self, model: ModelDefinition) -> TabPFNContext:
        """As TabPFNEngine on a CPU. Raises InvalidModel for a model without a compiled classifier, too."""
        context = super().fit(model)
        if context._compiled is None or not context.classes:
            raise InvalidModel(f"model {model.name!r}: the simulated GPU answers compiled classifiers alone")
        # The engine offers no public place for another forward pass, so that no setting can bring one in.
        context._compiled = GpuLikeEnsemble(context._compiled, len(context.classes), self._timeline)
        return context

    def reference(self, batch: Batch) -> Matrix:
        """The same answers, so that the checks of the start pass."""
        context = batch.context
        assert isinstance(context, TabPFNContext), "this is a bug: a context of another engine"
        return context.correct(made_up_answers(batch.rows, len(context.classes)))


class GpuLikeEnsemble:
    """In place of a context's compiled ensemble: it prepares rows as that one does, and computes nothing."""

    is_recorded = True

    def __init__(self, ensemble: CompiledEnsemble, num_classes: int, timeline: NotedTimeline) -> None:
        self._ensemble = ensemble
        self._num_classes = num_classes
        self._timeline = timeline

    def launch(self, rows: Matrix) -> Launched:
        """Prepare the rows, and put the batch on the timeline behind those before it."""
        prepare = self._ensemble._preprocessing
        with torch.inference_mode():
            prepare(rows, prepare.new_tensor(len(rows), is_pinned=False))
        return _OnTimeline(self, rows, self._timeline.launch(len(rows), time.monotonic()))

    def answer(self, rows: Matrix) -> Matrix:
        """What the device brings back, rounded as the host rounds it."""
        return self._ensemble._collect(torch.from_numpy(made_up_answers(rows, self._num_classes)), None)


@dataclass(frozen=True, slots=True)
class _OnTimeline:
    ensemble: GpuLikeEnsemble
    rows: Matrix
    ends_at: float

    def collect(self) -> Matrix:
        time.sleep(max(0.0, self.ends_at - time.monotonic()))
        return self.ensemble.answer(self.rows)


def made_up_answers(rows: Matrix, num_classes: int) -> Matrix:
    """Probabilities float64 [rows, classes] that depend on the row alone: an answer given to another caller is seen."""
    score = np.sin(np.nansum(rows, axis=1, keepdims=True))
    weights = np.exp(score * np.arange(num_classes))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


if __name__ == "__main__":
    run(GpuLikeEngine)
