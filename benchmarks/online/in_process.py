"""The demo model without a server around it, for the comparison of `benchmarks.online.overhead`.

The engine is the server's engine with the server's settings, called directly from this process. The steps of one
request are those of the native protocol (`serve/api/native`), one after the other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.peers.records import Record
from serve.api.native.json_body import decode_table, encode_answer
from serve.core import Batch, Prediction, QueryTable, Timing
from serve.core.row_buckets import row_buckets
from serve.engine.engine import TabPFNEngine
from serve.replica.interface import ServedModel
from serve.settings import BatchingSettings, EngineSettings, StoreSettings
from serve.store import FolderStore

STEPS = ("parse", "encode", "compute", "serialise")


class InProcess:
    """The embedded model `fraud`, with every row bucket warmed up.

    Args:
        records: the rows of the one-row requests.
        bodies: the same requests as they are posted.
    """

    def __init__(self, records: Sequence[Record], bodies: Sequence[bytes], num_threads: int) -> None:
        definition = FolderStore(StoreSettings()).load("fraud")
        max_batch_rows = BatchingSettings().max_batch_rows
        self._engine = TabPFNEngine(EngineSettings(num_threads=num_threads), max_batch_rows=max_batch_rows)
        self._context = self._engine.fit(definition)
        self._model = ServedModel(definition, self._context, 1.0)
        self._bodies = bodies
        self._rows = self._context.encode(QueryTable.from_records(records))
        for num_rows in row_buckets(max_batch_rows, self._engine.device):
            self.compute(num_rows)

    def compute(self, num_rows: int) -> float:
        """Seconds of one batch of `num_rows` rows that were encoded before."""
        batch = Batch(self._context, np.resize(self._rows, (num_rows, self._rows.shape[1])))
        began = time.perf_counter()
        self._engine.predict(batch)
        return time.perf_counter() - began

    def steps(self, number: int) -> list[float]:
        """Seconds of each of `STEPS`, for one request that is alone."""
        body = self._bodies[number % len(self._bodies)]
        times = [time.perf_counter()]
        table = decode_table(body)
        times.append(time.perf_counter())
        rows = self._context.encode(table)
        times.append(time.perf_counter())
        outputs = self._engine.predict(Batch(self._context, rows))
        times.append(time.perf_counter())
        encode_answer(self._model, Prediction(outputs, 1, Timing(0.0, 0.0)), "0" * 32, 0.0)
        times.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(times)]

    def close(self) -> None:
        """Give the engine's resources back."""
        self._engine.close()
