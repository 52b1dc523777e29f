"""Products in tiles are the attention that they replace, whatever the tiles' size, and whatever the scores'."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.forward import attention
from serve.engine.forward.attention import BITS, MAX_EXP_SCORE, attend_tiled, attend_tokens, count_votes


def plain(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[batch, length, D] each, in float64."""
    scores = queries.double() @ keys.double().transpose(1, 2)
    return (torch.softmax(scores, dim=-1) @ values.double()).float()


def laid_out(keys: torch.Tensor) -> torch.Tensor:
    """[batch, length, D] as tiles take them."""
    return (keys * BITS).transpose(1, 2)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5), st.integers(1, 70), st.integers(1, 50), st.sampled_from([1, 700, 5_000, 2**20]), st.booleans(),
    st.integers(0, 2**32),
)  # fmt: skip
def test_tiles_do_not_show(batch: int, queries: int, context: int, tile_bytes: int, bounded: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, n, 8, generator=generator) for n in (queries, context, context))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_TILE_BYTES", tile_bytes)
        mixed = attend_tiled(q, laid_out(k), v, is_bounded=bounded)
    torch.testing.assert_close(mixed, plain(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", [MAX_EXP_SCORE, -MAX_EXP_SCORE])
def test_the_largest_scores_that_count_as_bounded_are_exact(score: float) -> None:
    keys = torch.zeros(1, 100_000, 8)
    keys[..., 0] = score
    queries, values = torch.eye(8)[None, :1], torch.randn(1, 100_000, 8)
    mixed = attend_tiled(queries, laid_out(keys), values, is_bounded=True)
    torch.testing.assert_close(mixed[0, 0], values[0].mean(0), rtol=1e-3, atol=1e-5)


def test_unbounded_scores_may_be_of_any_size() -> None:
    queries, keys, values = 300 * torch.randn(2, 5, 8), torch.randn(2, 40, 8), torch.randn(2, 40, 8)
    torch.testing.assert_close(
        attend_tiled(queries, laid_out(keys), values), plain(queries, keys, values), rtol=1e-3, atol=1e-3
    )


def test_scores_far_below_the_largest_count_for_nothing_and_cost_nothing() -> None:
    """Their exponentials would be numbers so small that a processor multiplies them by microcode."""
    scores = torch.tensor([[0.0, -20.0, -88.0, -95.0, -1e30]])
    exponentials = attention._exponentiate(scores + 7, is_bounded=False)
    assert exponentials.min() >= torch.finfo(torch.float32).tiny
    torch.testing.assert_close(exponentials, torch.exp2(scores), rtol=1e-6, atol=1e-25)


@pytest.mark.parametrize("bounded", [True, False])
def test_sixteen_bit_scores_are_summed_in_more(bounded: bool) -> None:
    """Sums that were rounded at every step would stand still after some hundreds of scores."""
    queries, keys, values = torch.randn(2, 3, 8), torch.randn(2, 900, 8), torch.randn(2, 900, 8)
    values[..., 0] = 1
    narrow = [x.bfloat16() for x in (queries, laid_out(keys), values)]
    mixed = attend_tiled(*narrow, is_bounded=bounded).float()
    torch.testing.assert_close(mixed[..., 0], torch.ones(2, 3), rtol=0, atol=0.01)
    # Of the others 16-bit scores are off by a hundredth, which moves a mean of 900 by more where few of them count.
    torch.testing.assert_close(mixed, plain(queries, keys, values), rtol=0, atol=0.1)


@pytest.mark.parametrize("tile_bytes", [1, 5_000, 2**20])
def test_votes_are_shares_of_the_attention(monkeypatch: pytest.MonkeyPatch, tile_bytes: int) -> None:
    monkeypatch.setattr(attention, "_TILE_BYTES", tile_bytes)
    queries, keys, votes = 20 * torch.randn(3, 7, 8), torch.randn(3, 50, 8), (torch.rand(3, 50, 4) < 0.3).float()
    votes[..., -1] = 1
    shares = count_votes(queries, laid_out(keys), votes.transpose(1, 2).contiguous())
    torch.testing.assert_close(shares.transpose(1, 2), plain(queries, keys, votes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("bounded", [True, False])
def test_tokens_of_a_row_meet_no_other_row(bounded: bool, scale: float) -> None:
    queries, keys, values = torch.randn(3, 6, 4, 8), torch.randn(7, 6, 4, 8), torch.randn(7, 6, 4, 8)
    mixed = attend_tokens(queries, keys, values, scale=scale, is_bounded=bounded)
    for row in range(6):
        for head in range(4):
            alone = (x[None, :, row, head] for x in (scale * queries, keys, values))
            torch.testing.assert_close(mixed[:, row, head], plain(*alone)[0], rtol=1e-5, atol=1e-5)
