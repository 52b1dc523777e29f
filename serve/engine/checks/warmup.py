"""Every row bucket runs once before a replica is ready, so that no caller pays for a first time.

A bucket is a permitted number of rows of one forward: batches are padded up to the next one, so that a row always
meets the same few shapes and the same kernels, whatever company it has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from serve.core import Batch, Engine, FittedContext, Matrix
from serve.core.errors import StartupError
from serve.engine.checks.parity import compare_answers

_log = logging.getLogger(__name__)

_SLOW_S = 1.0
"""What happens only once is little beside this, and a start need not take twice as long for it."""


def warm_up(
    engine: Engine, context: FittedContext, rows: Matrix, buckets: Sequence[int], tolerance: float
) -> dict[int, float]:
    """Run every bucket, the largest first (it sets the memory's high-water mark); seconds of each.

    A bucket that was quick runs once more and its faster time counts: the first pays for what happens only once, such
    as recording a CUDA graph, and the batcher predicts from these seconds what a batch will take.

    Args:
        rows: at least one encoded row, repeated to fill a bucket.
        tolerance: most that the answers to the same rows may differ between buckets, as in `parity.compare_answers`.

    Raises:
        StartupError: a bucket failed, or answers otherwise than the largest; names it.
    """
    seconds = {}
    largest: Matrix | None = None
    for bucket in sorted(buckets, reverse=True):
        batch = Batch(context, np.resize(rows, (bucket, rows.shape[1])))
        answer, seconds[bucket] = _run(engine, batch)
        if seconds[bucket] < _SLOW_S:
            seconds[bucket] = min(seconds[bucket], _run(engine, batch)[1])
        largest = answer if largest is None else largest
        compare_answers(
            f"in a batch of {len(largest)}", largest[:bucket], f"in one of {bucket}", answer, tolerance,
            is_probability=bool(context.classes),
        )  # fmt: skip
    _log.info("warm-up, milliseconds by rows: %s", {rows: round(1e3 * s, 1) for rows, s in sorted(seconds.items())})
    return seconds


def _run(engine: Engine, batch: Batch) -> tuple[Matrix, float]:
    """A finite answer for every row, and its seconds."""
    num_rows = len(batch.rows)
    started = time.perf_counter()
    try:
        answer = engine.predict(batch)
    except Exception as error:
        raise StartupError(f"warm-up failed at {num_rows} rows on {engine.device}: {error}") from error
    seconds = time.perf_counter() - started
    if answer.shape != (num_rows, batch.context.num_outputs) or not np.isfinite(answer).all():
        raise StartupError(f"warm-up at {num_rows} rows on {engine.device} gave no finite answer per row")
    return answer, seconds
