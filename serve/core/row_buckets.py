"""Row buckets: the numbers of rows that one forward pass may have.

Batches are padded up to the next bucket, so that a row always meets the same few shapes and the same kernels, whatever
other rows are in its batch.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def row_buckets(max_batch_rows: int) -> tuple[int, ...]:
    """Powers of two with up to three steps between them, up to `max_batch_rows`, which is the last bucket.

    Padding then adds a quarter to a large batch at most; powers of two alone could double it. Each bucket costs one
    run at the start.
    """
    buckets = {max_batch_rows}
    for power in (2**exponent for exponent in range((max_batch_rows - 1).bit_length())):
        steps = (power, power * 5 // 4, power * 3 // 2, power * 7 // 4)
        buckets.update(step for step in steps if step < max_batch_rows)
    return tuple(sorted(buckets))


def bucket_of(num_rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `num_rows`; `num_rows` itself beyond the largest."""
    index = bisect.bisect_left(buckets, num_rows)
    return buckets[index] if index < len(buckets) else num_rows
