"""Row buckets: the numbers of rows that one forward pass may have.

Batches are padded up to the next bucket, so that a row always meets the same few shapes and the same kernels, whatever
other rows are in its batch.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def row_buckets(max_batch_rows: int, device: str = "cpu") -> tuple[int, ...]:
    """The buckets up to `max_batch_rows`, which is the last.

    On a CPU they are powers of two with up to three steps between them. Padding then adds a quarter to a large batch at
    most; powers of two alone could double it. Each bucket costs one run at the start.

    On a GPU few rows take the time of one, and each bucket costs a recorded graph. So there are 1, 4 and 16 rows, then
    powers of two, from 64 on with one step between them: nine buckets up to 256.
    """
    powers = [2**exponent for exponent in range((max_batch_rows - 1).bit_length())]
    if device == "cpu":
        buckets = {power * quarters // 4 for power in powers for quarters in (4, 5, 6, 7)}
    else:
        buckets = {1, 4, 16, *(power for power in powers if power >= 32)}
        buckets.update(power * 3 // 2 for power in powers if power >= 64)
    return tuple(sorted({bucket for bucket in buckets if bucket < max_batch_rows} | {max_batch_rows}))


def bucket_of(num_rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `num_rows`; `num_rows` itself beyond the largest."""
    index = bisect.bisect_left(buckets, num_rows)
    return buckets[index] if index < len(buckets) else num_rows
