"""Small networks of v3 and v3.5 with random weights, their caches, and tabpfn's own answers from them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabpfn import architectures
from torch.utils._python_dispatch import TorchDispatchMode

from serve.engine.forward import Builder, Group, v3, v3_5

BUILDERS: Mapping[str, Builder] = {"tabpfn_v3": v3.build, "tabpfn_v3_5": v3_5.build}
ARCHITECTURES = tuple(BUILDERS)
TINY: dict[str, Any] = {
    "max_num_classes": 10, "num_buckets": 40, "embed_dim": 32, "dist_embed_num_blocks": 2, "dist_embed_num_heads": 4,
    "dist_embed_num_inducing_points": 8, "feat_agg_num_blocks": 2, "feat_agg_num_heads": 4,
    "feat_agg_num_cls_tokens": 4, "nlayers": 2, "icl_num_heads": 4, "decoder_head_dim": 8, "decoder_num_heads": 3,
    "softmax_scaling_mlp_hidden_dim": 16,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    # the class's default gives test rows every key/value head; the released v3 has one
    "tabpfn_v3": {"icl_num_kv_heads_test": 1},
    "tabpfn_v3_5": {"fourier_encoding_num_frequencies": 8},
}


@dataclass(frozen=True, eq=False)
class Fitted:
    """A network and its caches over a random context; `targets` as tabpfn takes them, [context rows, members]."""

    arch: str
    network: Any
    caches: Sequence[Any]
    targets: torch.Tensor
    task: str

    def tabpfn(self, rows: torch.Tensor) -> torch.Tensor:
        """[members, rows, width] to [members, rows, outputs], a call per cache."""
        sizes = [cache.train_shape[0] for cache in self.caches]
        with torch.inference_mode():
            answers = [
                self.network(x.transpose(0, 1), y, task_type=self.task, kv_cache=cache, x_is_test_only=True).transpose(
                    0, 1
                )
                for x, y, cache in zip(rows.split(sizes), self.targets.split(sizes, 1), self.caches, strict=True)
            ]
        return torch.cat(answers)

    def build(self, dtype: torch.dtype = torch.float32, columns: torch.Tensor | None = None) -> Any:
        group = Group(self.caches, self.targets.T.contiguous(), columns)
        return BUILDERS[self.arch](self.network, [group], self.task, dtype)


def build_joined(*groups: Fitted) -> Any:
    """One forward of groups of one network."""
    first = groups[0]
    parts = [Group(group.caches, group.targets.T.contiguous()) for group in groups]
    return BUILDERS[first.arch](first.network, parts, first.task, torch.float32)


@functools.cache
def draw_network(arch: str, task: str = "multiclass", seed: int = 0, **config: Any) -> Any:
    """Random weights of a size at which answers differ from row to row; zero-initialised projections are drawn too.

    A network of v3 is made for one task, one of v3.5 for both.
    """
    torch.manual_seed(seed)
    architecture = architectures.ARCHITECTURES[arch]
    outputs = {"max_num_classes": 0} if (arch, task) == ("tabpfn_v3", "regression") else {}
    parsed, unused = architecture.parse_config({**TINY, **OWN[arch], **outputs, **config})
    assert not unused
    network = architecture.get_architecture(parsed).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2.0)
            elif parameter.requires_grad and not parameter.any():
                parameter.normal_(0, 0.2)
            elif arch == "tabpfn_v3" and "q_projection.weight" in name:
                parameter.mul_(3)  # it norms no queries: its scores are else near zero, and every row alike
        if arch == "tabpfn_v3_5":
            network.heads.many_class_decoder.q_projection.weight.mul_(4)
    return network


def draw_context(sizes: Sequence[int], num_rows: int, width: int, seed: int = 1) -> torch.Tensor:
    """[context rows, members, width]: holes, infinities, ties, and in wide tables a constant and an empty column."""
    torch.manual_seed(seed)
    context = torch.randn(num_rows, sum(sizes), width)
    context[torch.rand(context.shape) < 0.1] = torch.nan
    context[3, :, 0] = torch.inf
    context[:, :, ::3] = (2 * context[:, :, ::3]).round()
    if width > 4:
        context[:, :, 2], context[:, :, 4] = 1.5, torch.nan
    return context


def fit(
    arch: str, task: str = "multiclass", *, sizes: Sequence[int] = (3,), num_rows: int = 40, width: int = 6,
    labels: Sequence[int] = (0, 1, 2), quantized: bool = False, **config: Any,
) -> Fitted:  # fmt: skip
    """`config` is of the network."""
    network = draw_network(arch, task, **config)
    context = draw_context(sizes, num_rows, width)
    if task == "regression":
        targets = torch.randn(num_rows, sum(sizes))
    else:
        targets = torch.tensor(labels)[torch.randint(len(labels), (num_rows, sum(sizes)))].float()
        targets[: len(labels)] = torch.tensor(labels).float()[:, None]
    caches = []
    with torch.inference_mode():
        for x, y in zip(context.split(sizes, 1), targets.split(sizes, 1), strict=True):
            _, cache = network(torch.cat([x, x[:1]]), y, task_type=task, return_kv_cache=True)
            caches.append(cache.quantize() if quantized else cache)
    return Fitted(arch, network, caches, targets, task)


def draw_rows(fitted: Fitted, num_rows: int, width: int = 6, seed: int = 2) -> torch.Tensor:
    """[members, rows, width]: new values, the context's own, missing, infinite and enormous ones."""
    sizes = [cache.train_shape[0] for cache in fitted.caches]
    known = draw_context(sizes, 40, width).transpose(0, 1)
    torch.manual_seed(seed)
    rows = 2 * torch.randn(sum(sizes), num_rows, width)
    rows[torch.rand(rows.shape) < 0.1] = torch.nan
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf, 1e30, -1e9)):
        rows[:, 1 + row : 2 + row, row % width] = value
    rows[:, 6:12] = known[:, : rows[:, 6:12].shape[1]]
    return rows


def shares(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits, dim=-1)


def assert_parity(fitted: Fitted, rows: torch.Tensor) -> None:
    got, expected = fitted.build()(rows), fitted.tabpfn(rows)
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    assert torch.isfinite(expected).all()
    # of the logarithms, which are a few units large
    torch.testing.assert_close(got.log_softmax(-1), expected.log_softmax(-1), rtol=2e-6, atol=1e-5)


class Recorder(TorchDispatchMode):
    """Names of the operations that ask the device for a value, or whose result's shape does."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if (
            name in {"_local_scalar_dense", "item", "is_nonzero", "equal"}
            or torch.Tag.dynamic_output_shape in func.tags
        ):
            self.waits.add(name)
        return func(*args, **(kwargs or {}))
