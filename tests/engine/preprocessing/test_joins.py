"""What the whole row enters: its bits are tabpfn's for the row alone, however many rows are given."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from tabpfn.preprocessing.steps import AddFingerprintFeaturesStep
from tabpfn.preprocessing.torch.torch_svd import TorchTruncatedSVD

from serve.engine.preprocessing.joins import Fingerprint, Projection, TorchProjection


@pytest.mark.parametrize(("num_columns", "num_components"), [(2, 1), (9, 4), (40, 20), (200, 11)])
def test_projection_of_a_row(num_columns: int, num_components: int) -> None:
    rows = np.random.default_rng(0).normal(size=(256, num_columns)) * 10
    svd = TruncatedSVD(algorithm="arpack", n_components=num_components, random_state=0).fit(rows)
    alone = np.concatenate([svd.transform(np.asfortranarray(row)) for row in np.split(rows, len(rows))])
    for start, stop in [(0, 256), (3, 10), (5, 6)]:
        np.testing.assert_array_equal(Projection(svd.components_)(rows[start:stop].T).T, alone[start:stop])


@pytest.mark.parametrize(("num_columns", "num_components"), [(2, 1), (9, 4), (60, 20)])
def test_torch_projection_of_a_row(num_columns: int, num_components: int) -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(64, num_columns)).astype(np.float32))
    svd = TorchTruncatedSVD(num_components)
    cache = svd.fit(rows)
    alone = torch.cat([svd.transform(row, cache) for row in torch.split(rows, 1)]).numpy()
    got = TorchProjection(cache["components"].numpy())
    for start, stop in [(0, 64), (3, 10), (5, 6)]:
        np.testing.assert_array_equal(got(rows[start:stop].numpy().T).T, alone[start:stop])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fingerprint(dtype: type[np.floating]) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 7)).astype(dtype)
    rows[0], rows[1], rows[2, 3], rows[3] = 0.0, -0.0, np.nan, rows[4]
    step = AddFingerprintFeaturesStep()
    step.n_cells_ = 12_345
    expected = step._transform(rows, is_test=True)[1]
    got = Fingerprint(np.array(12_345))
    np.testing.assert_array_equal(got(rows.T).T, expected)
    np.testing.assert_array_equal(got(rows[6:7].T).T, expected[6:7])
    assert got(rows.T)[0, 0] != got(rows.T)[0, 1], "zeros of either sign are not the same, as in tabpfn"
    assert got(rows.T)[0, 3] == got(rows.T)[0, 4], "equal test rows share expected"
    assert got(rows.T).dtype == dtype
