"""Runs every row bucket once before a replica is ready, so that no request pays for a first run."""

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
"""A slower bucket runs only once: work that happens only once is small beside it, and the start takes half as long."""


def warm_up(
    engine: Engine, context: FittedContext, rows: Matrix, buckets: Sequence[int], tolerance: float
) -> dict[int, float]:
    """Run every bucket, the largest first, because it sets the peak of memory.

    A fast bucket runs twice, and its faster time counts: the first run includes work that happens only once, such as
    recording a CUDA graph. The batcher predicts from these times how long a batch takes.

    Args:
        rows: the canary rows or the first of them, float64 [rows, features], repeated to fill a bucket.
        buckets: numbers of rows.
        tolerance: largest difference between answers to the same rows in two buckets; see `parity.compare_answers`.

    Returns:
        Seconds of each bucket.

    Raises:
        StartupError: a bucket failed, or its answers differ from the largest bucket's; names the bucket.
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
            is_probability=bool(context.classes), slack=context.canary_slack,
        )  # fmt: skip
    _log.info("warm-up, milliseconds by rows: %s", {rows: round(1e3 * s, 1) for rows, s in sorted(seconds.items())})
    return seconds


def _run(engine: Engine, batch: Batch) -> tuple[Matrix, float]:
    """The answer to every row, and its seconds. Raises StartupError where it fails or is not finite."""
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
