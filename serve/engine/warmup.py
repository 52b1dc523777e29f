"""Every row bucket runs once before a replica is ready, so that no caller pays for a first time.

A bucket is a permitted number of rows of one forward: batches are padded up to the next one, so that a row always
meets the same few shapes and the same kernels, whatever company it has.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections.abc import Sequence

import numpy as np

from serve.core import Batch, Engine, FittedContext, Matrix
from serve.engine.parity import compare_answers
from serve.errors import StartupError

_log = logging.getLogger(__name__)


def row_buckets(max_batch_rows: int) -> tuple[int, ...]:
    """Powers of two up to `max_batch_rows`, which is itself the last bucket."""
    return (*(2**exponent for exponent in range((max_batch_rows - 1).bit_length())), max_batch_rows)


def bucket_of(num_rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `num_rows`; `num_rows` itself beyond the largest."""
    index = bisect.bisect_left(buckets, num_rows)
    return buckets[index] if index < len(buckets) else num_rows


def warm_up(
    engine: Engine, context: FittedContext, rows: Matrix, buckets: Sequence[int], tolerance: float
) -> dict[int, float]:
    """Run every bucket, the largest first (it sets the memory's high-water mark); seconds of each.

    Args:
        rows: at least one encoded row, repeated to fill a bucket.
        tolerance: most that the answers to the same rows may differ between buckets, as in `parity.compare_answers`.

    Raises:
        StartupError: a bucket failed, or answers otherwise than the largest; names it.
    """
    seconds = {}
    largest: Matrix | None = None
    for bucket in sorted(buckets, reverse=True):
        started = time.perf_counter()
        try:
            answer = engine.predict(Batch(context, np.resize(rows, (bucket, rows.shape[1]))))
        except Exception as error:
            raise StartupError(f"warm-up failed at {bucket} rows on {engine.device}: {error}") from error
        if answer.shape != (bucket, context.num_outputs) or not np.isfinite(answer).all():
            raise StartupError(f"warm-up at {bucket} rows on {engine.device} gave no finite answer per row")
        seconds[bucket] = time.perf_counter() - started
        largest = answer if largest is None else largest
        compare_answers(
            f"in a batch of {len(largest)}", largest[:bucket], f"in one of {bucket}", answer, tolerance,
            is_probability=bool(context.classes),
        )  # fmt: skip
    _log.info("warm-up, milliseconds by rows: %s", {rows: round(1e3 * s, 1) for rows, s in sorted(seconds.items())})
    return seconds
