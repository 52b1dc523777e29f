"""Cells that several members have are computed once, and only those."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from v3_harness import ARCHITECTURES, draw_context, draw_rows, fit


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("group", "num_kinds"), [(1, 3 * 6), (3, 4 * 6)])
def test_what_members_share_is_computed_once(arch: str, group: int, num_kinds: int) -> None:
    """Members 0 and 1 hold the same columns in the same order, 2 in another, 3 has another label for each; 4 has
    other rows for its context, as where each member draws its own."""
    fitted = fit(arch, sizes=(5,), feature_group_size=group)
    context = draw_context((5,), 40, 6)
    order = torch.tensor([5, 4, 3, 2, 1, 0])
    context[:, 1] = context[:, 0]
    context[:, 2], context[:, 3] = context[:, 0][:, order], context[:, 0]
    fitted.targets[:, 1:3] = fitted.targets[:, :1]
    fitted.targets[:, 3] = 2 - fitted.targets[:, 0]
    with torch.inference_mode():
        inputs = torch.cat([context, context[:1]])
        _, cache = fitted.network(inputs, fitted.targets, task_type="multiclass", return_kv_cache=True)
    fitted = dataclasses.replace(fitted, caches=[cache])
    columns = torch.arange(6).repeat(5, 1)
    columns[2] = order
    rows = draw_rows(fitted, 20)
    rows[1] = rows[3] = rows[4] = rows[0]
    rows[2] = rows[0][:, order]
    forward = fitted.build(columns=columns)
    assert forward._embeddings[0]._column_blocks[0]._attend._keys.shape[0] == num_kinds * 4  # heads
    expected = fitted.tabpfn(rows)
    torch.testing.assert_close(forward(rows).log_softmax(-1), expected.log_softmax(-1), rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(fitted.build()(rows), forward(rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("arch", "centre"), [("tabpfn_v3_5", 0.3), ("tabpfn_v3", 4e3), ("tabpfn_v3_5", 4e3)])
def test_statistics_that_differ_in_the_last_bit_are_each_members_own(arch: str, centre: float) -> None:
    """That bit depends on the place of a column in tabpfn's batch. Here the mean lies among equal context values, but
    for that bit, which decides on which side of them a missing cell is ranked. Far from zero it moves every cell."""
    members, width, num_rows = 5, 7, 61
    fitted = fit(arch, sizes=(members,))
    generator = torch.Generator().manual_seed(0)
    offsets = torch.rand(20, width, generator=generator)
    centres = centre + torch.rand(width, generator=generator)
    table = torch.cat([centres - offsets, centres.expand(num_rows - 40, width), centres + offsets])
    orders = torch.stack([torch.arange(width).roll(member) for member in range(members)])
    targets = fitted.targets[torch.arange(num_rows) % len(fitted.targets)]
    targets[:] = targets[:, :1]
    with torch.inference_mode():
        context = table[:, orders]
        inputs = torch.cat([context, context[:1]])
        _, cache = fitted.network(inputs, targets, task_type="multiclass", return_kv_cache=True)
    means = cache.scaler_cache["mean"].gather(1, orders.argsort(1))
    assert (means != means[0]).any(), "sums that agree would prove nothing"
    fitted = dataclasses.replace(fitted, caches=[cache], targets=targets)
    rows = table[:width].clone()
    rows.fill_diagonal_(torch.nan)
    rows = rows[:, orders].transpose(0, 1).contiguous()
    got, expected = fitted.build(columns=orders)(rows), fitted.tabpfn(rows)
    torch.testing.assert_close(got.log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=5e-6)
