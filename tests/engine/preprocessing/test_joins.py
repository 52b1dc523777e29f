"""What the whole row enters: its bits are tabpfn's for the row alone, however many rows are given."""

import hashlib

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.decomposition import TruncatedSVD
from tabpfn.preprocessing.steps import AddFingerprintFeaturesStep
from tabpfn.preprocessing.torch.torch_svd import TorchTruncatedSVD

from serve.engine.preprocessing.joins import Fingerprint, Projection, TorchProjection, divide_by_largest_hash

LARGEST_HASH = 2**64 - 1
LAYOUTS = {
    "of a fit": lambda components: np.ascontiguousarray(components[::-1])[::-1],
    "of a pickle": np.ascontiguousarray,
    "by columns": np.asfortranarray,
}


@pytest.mark.parametrize(("num_columns", "num_components"), [(2, 1), (9, 4), (40, 20), (200, 11)])
def test_projection_of_a_row(num_columns: int, num_components: int) -> None:
    rows = np.random.default_rng(0).normal(size=(256, num_columns)) * 10
    svd = TruncatedSVD(algorithm="arpack", n_components=num_components, random_state=0).fit(rows)
    alone = np.concatenate([svd.transform(np.asfortranarray(row)) for row in np.split(rows, len(rows))])
    for start, stop in [(0, 256), (3, 10), (5, 6)]:
        np.testing.assert_array_equal(Projection(svd.components_)(rows[start:stop].T).T, alone[start:stop])


@settings(max_examples=60)
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    num_columns=st.integers(1, 90),
    num_components=st.integers(1, 40),
    num_rows=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_projection_in_company_is_as_alone(
    layout: str, num_columns: int, num_components: int, num_rows: int, seed: int
) -> None:
    """Whichever routine numpy takes for the layout of the components, and on both sides of the change to many rows."""
    rng = np.random.default_rng(seed)
    components = LAYOUTS[layout](rng.normal(size=(num_components, num_columns)))
    rows = rng.normal(size=(num_rows, num_columns)) * 10 ** rng.uniform(-8, 8, num_columns)
    together = Projection(components)(rows.T).T
    for row, got in zip(np.split(rows, num_rows), together, strict=True):
        np.testing.assert_array_equal(got, (row @ components.T)[0])


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
    assert got(rows.T).dtype == got(rows[:3].T).dtype == dtype


@given(num_rows=st.integers(1, 80), num_columns=st.integers(1, 90), salt=st.integers(0, 2**40), seed=st.integers(0, 99))
def test_fingerprint_in_company_is_as_alone(num_rows: int, num_columns: int, salt: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(num_rows, num_columns))
    got = Fingerprint(np.array(salt))(rows.T)[0]
    for row, fingerprint in zip(np.around(rows, 12), got, strict=True):
        digest = hashlib.sha256(row.tobytes() + salt.to_bytes(8, "little")).digest()
        assert fingerprint == (int.from_bytes(digest, "big") % 2**64) / LARGEST_HASH


HALFWAY_BETWEEN_FLOATS = st.builds(
    lambda float53, shift, step: (float53 << shift) + (1 << shift) // 2 + step,
    st.integers(2**52, 2**53 - 1), st.integers(0, 11), st.integers(-1, 1),
)  # fmt: skip


@settings(max_examples=300)
@given(st.one_of(st.integers(0, LARGEST_HASH), HALFWAY_BETWEEN_FLOATS, st.integers(0, 2**54)))
def test_hashes_are_divided_as_integers(number: int) -> None:
    got = divide_by_largest_hash(np.array([number], dtype=">u8"))
    np.testing.assert_array_equal(got, [number / LARGEST_HASH])


def test_a_hash_between_two_floats_is_rounded_once() -> None:
    number = 2**63 + 2**10
    assert float(number) / float(LARGEST_HASH) != number / LARGEST_HASH
    np.testing.assert_array_equal(divide_by_largest_hash(np.array([number], dtype=np.uint64)), [number / LARGEST_HASH])
