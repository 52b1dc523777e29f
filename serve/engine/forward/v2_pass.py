"""The pass that v2, v2.5 and v2.6 share: rows of every group to logits, through the layers of `v2_layers.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from serve.engine.forward import Forward
from serve.engine.forward.layers import MAX_CUDA_GRID
from serve.engine.forward.v2_cells import Part
from serve.engine.forward.v2_layers import join, read_layer

MAX_HIDDEN_BYTES = 256 * 2**20
"""Most bytes of one pass's widest activation, the hidden layer of the MLP; more rows take several passes."""


def build_forward(network: Any, parts: Sequence[Part], dtype: torch.dtype, kv_dtype: torch.dtype) -> Forward:
    """The forward pass of all parts, whose answers come in the order of the groups and of the members in them.

    A GPU runs all parts in one pass: fewer kernels, and a call reads the weights once. A CPU runs one after another,
    because smaller activations stay in its cache.
    """
    is_on_cpu = parts[0].cells.fill.device.type == "cpu"
    passes = [
        CellsForward(network, part, dtype, kv_dtype) for part in ([[one] for one in parts] if is_on_cpu else [parts])
    ]
    in_order = _order(parts)

    def run(*rows: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            answers = [one(rows) for one in passes]
            joined = answers[0] if len(answers) == 1 else torch.cat(answers)
            return joined if in_order is None else joined.index_select(0, in_order)

    return run


def _order(parts: Sequence[Part]) -> torch.Tensor | None:
    """Where the answer of each member is among those of the parts; None where the parts are in order."""
    if all(part.members is None for part in parts):
        return None
    sizes: dict[int, int] = {}
    for part in parts:
        sizes[part.group] = sizes.get(part.group, 0) + len(part.cells.target)
    places = []
    for part in parts:
        first = sum(size for group, size in sizes.items() if group < part.group)
        members = torch.arange(len(part.cells.target)) if part.members is None else part.members.cpu()
        places.append(first + members)
    order = torch.cat(places).argsort()
    return None if torch.equal(order, torch.arange(len(order))) else order.to(parts[0].cells.fill.device)


class CellsForward:
    """The forward pass of parts that run together: rows float32 [members, rows, width] of every group to logits float32
    [members, rows, outputs] of the parts' members.

    Every token of every member and row is a row of one matrix; a part's tokens follow those of the part before. So
    norms and products take all of them at once, and only attention goes part by part.

    Args:
        network: tabpfn's module.
        dtype: number format of the weights.
        kv_dtype: number format of the cached keys and values, and of attention to them.
    """

    def __init__(self, network: Any, parts: Sequence[Part], dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
        self._parts = parts
        self._layers = [
            read_layer(network.blocks[i], parts, i, i == len(network.blocks) - 1, dtype, kv_dtype)
            for i in range(len(network.blocks))
        ]
        hidden, _, output = network.output_projection
        self._head = [(layer.weight.detach().float(), layer.bias.detach().float()) for layer in (hidden, output)]
        self._max_rows = self._limit_rows(
            max(network.hidden_size, *(len(p) for part in parts for p in part.cells.projections))
        )

    def _limit_rows(self, hidden_size: int) -> int:
        num_tokens = sum(len(part.cells.target) * (part.cells.num_groups + 1) for part in self._parts)
        row_bytes = num_tokens * hidden_size * torch.float32.itemsize
        row_cells = max(len(part.cells.target) for part in self._parts) * self._layers[0].num_heads
        return max(1, min(MAX_HIDDEN_BYTES // row_bytes, MAX_CUDA_GRID // row_cells))

    def __call__(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        num_rows = rows[0].shape[1]
        starts = range(0, num_rows, self._max_rows)
        passes = [self._pass(rows, start, min(start + self._max_rows, num_rows)) for start in starts]
        return passes[0] if len(passes) == 1 else torch.cat(passes, dim=1)

    def _pass(self, rows: Sequence[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        embedded = [part.embed(rows, start, stop) for part in self._parts]
        shapes = [part.shape[:3] for part in embedded]
        tokens = join(embedded)
        for layer in self._layers:
            tokens = layer.apply(tokens, shapes)
        (hidden, hidden_bias), (output, output_bias) = self._head
        inner = functional.gelu(functional.linear(tokens, hidden, hidden_bias))
        return functional.linear(inner, output, output_bias).view(-1, stop - start, len(output))
