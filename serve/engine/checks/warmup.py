"""Runs every row bucket once before a replica is ready, so that no request pays for a first run."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from serve.core import Batch, Engine, FittedContext, Matrix
from serve.core.errors import OutOfMemory, StartupError
from serve.engine.checks.parity import compare_answers

_log = logging.getLogger(__name__)

_SLOW_S = 1.0
"""A slower bucket runs only once on a CPU: work that happens only once is small beside it, and the start takes half as
long. On a GPU the first run is four executions and the capture of a graph, so the second counts in any case."""


def warm_up(
    engine: Engine, context: FittedContext, rows: Matrix, buckets: Sequence[int], tolerance: float
) -> dict[int, float]:
    """Run every bucket, the largest first, because it sets the peak of memory.

    A bucket runs twice, and its faster time counts: the first run includes work that happens only once, such as
    recording a CUDA graph. A slow one runs once on a CPU. The batcher predicts from these times how long a batch takes.

    Args:
        rows: the canary rows or the first of them, float64 [rows, features], repeated to fill a bucket.
        buckets: numbers of rows.
        tolerance: largest difference between answers to the same rows in two buckets; see `parity.compare_answers`.

    Returns:
        Seconds of each bucket that fits into the memory.

    Raises:
        StartupError: a bucket failed, none fits, or answers differ from the largest bucket's; names the bucket.
    """
    seconds: dict[int, float] = {}
    largest: Matrix | None = None
    lack = ""
    for bucket in sorted(buckets, reverse=True):
        batch = Batch(context, np.resize(rows, (bucket, rows.shape[1])))
        try:
            answer, seconds[bucket] = _measure(engine, batch)
        except OutOfMemory as error:
            if seconds:
                raise StartupError(f"warm-up failed at {bucket} rows, after more rows had fitted: {error}") from error
            lack = str(error)  # the error itself would keep the tensors of the failed run
            continue
        largest = answer if largest is None else largest
        ways = f"in a batch of {len(largest)}", largest[:bucket], f"in one of {bucket}", answer
        compare_answers(*ways, tolerance, is_probability=bool(context.classes), slack=context.canary_slack)
    if not seconds:
        raise StartupError(f"warm-up failed at every number of rows: {lack}")
    if lack:
        _log.warning("batches have %d rows at most, not %d: %s", max(seconds), max(buckets), lack)
    _log.info("warm-up, milliseconds by rows: %s", {n: round(1e3 * s, 1) for n, s in sorted(seconds.items())})
    return seconds


def _measure(engine: Engine, batch: Batch) -> tuple[Matrix, float]:
    """As `_run`, with the seconds of the faster of two runs, or of the only one where it is slow on a CPU."""
    answer, seconds = _run(engine, batch)
    if engine.device == "cpu" and seconds >= _SLOW_S:
        return answer, seconds
    return answer, min(seconds, _run(engine, batch)[1])


def _run(engine: Engine, batch: Batch) -> tuple[Matrix, float]:
    """The answer to every row, and its seconds. Raises OutOfMemory; StartupError where it fails or is not finite."""
    num_rows = len(batch.rows)
    started = time.perf_counter()
    try:
        answer = engine.predict(batch)
    except OutOfMemory:
        raise
    except Exception as error:
        raise StartupError(f"warm-up failed at {num_rows} rows on {engine.device}: {error}") from error
    seconds = time.perf_counter() - started
    if answer.shape != (num_rows, batch.context.num_outputs) or not np.isfinite(answer).all():
        raise StartupError(f"warm-up at {num_rows} rows on {engine.device} gave no finite answer per row")
    return answer, seconds
