"""Elementwise operations against tabpfn's, to the bit."""

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given
from tabpfn.preprocessing.torch.torch_soft_clip_outliers import TorchSoftClipOutliers

from serve.engine.preprocessing.operations import SoftClip

COLUMN = arrays.arrays(np.float32, (12, 1), elements=st.floats(allow_infinity=False, width=32))
TRIED = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(allow_infinity=False, width=32))


@given(context=COLUMN, tried=TRIED, near=st.floats(0, 10, width=32))
def test_soft_clip_is_tabpfns(context: np.ndarray, tried: np.ndarray, near: float) -> None:
    """Within the bounds of a context, next to them and far beyond; of constant and missing columns too."""
    clip = TorchSoftClipOutliers()
    with np.errstate(all="ignore"):
        cache = clip.fit(torch.from_numpy(context))
        lower, upper = cache["lower"].numpy(), cache["upper"].numpy()
        rows = np.concatenate([tried, context[:, 0], lower, upper, lower - near, upper + near])
        rows = rows[~np.isinf(rows)]
        got = SoftClip(lower, upper)(rows[None])[0]
    expected = clip.transform(torch.from_numpy(rows)[:, None], cache)[:, 0].numpy()
    np.testing.assert_array_equal(got, expected)
