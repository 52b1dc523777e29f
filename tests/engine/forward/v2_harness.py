"""Small networks of v2, v2.5 and v2.6 with random weights, their caches, and tabpfn's own answers from them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tabpfn import architectures

from serve.engine.forward import Builder, v2, v2_5
from serve.engine.forward import Group as CacheGroup

BUILDERS: Mapping[str, Builder] = {"tabpfn_v2": v2.build, "tabpfn_v2_5": v2_5.build, "tabpfn_v2_6": v2_5.build}
ARCHITECTURES = tuple(BUILDERS)
TINY = {"emsize": 48, "nlayers": 3, "nhead": 3, "max_num_classes": 10, "num_buckets": 20}
THINKING = {"num_thinking_rows": 4}
REGRESSION = {"max_num_classes": 0}
CONTEXT_ROWS = 40


@dataclass
class Group:
    """Members of equal width on one network, fitted by tabpfn."""

    arch: str
    network: Any
    caches: list[Any]
    width: int

    @classmethod
    def fit(cls, arch: str, width: int = 7, members: int = 2, classes: int = 3, seed: int = 0, **options: Any) -> Group:
        """`classes` 0 is a regression; some context cells are missing, every fifth column is constant."""
        network = draw_network(arch, **(REGRESSION if classes == 0 else {}), **options)
        generator = torch.Generator().manual_seed(seed)
        caches = []
        for member in range(members):
            features = torch.randn(CONTEXT_ROWS, 1, width, generator=generator) * 3 + member
            features[torch.rand(features.shape, generator=generator) < 0.05] = math.nan
            features[:, :, 4::5] = 1.5
            labels = torch.randn(CONTEXT_ROWS, 1, generator=generator)
            if classes:
                labels = torch.randint(classes, (CONTEXT_ROWS, 1), generator=generator).float()
            caches.append(fit(network, features, labels))
        return cls(arch, network, caches, width)

    def rows(self, num_rows: int, seed: int = 1) -> torch.Tensor:
        """Test rows of every member; from the second row on with cells missing, infinite and far off."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(len(self.caches), num_rows, self.width, generator=generator) * 4
        odd = torch.rand(rows.shape, generator=generator)
        odd[:, 0] = 1
        for index, value in enumerate((math.nan, math.inf, -math.inf, 3e38, -3e38)):
            rows[(odd >= index * 0.04) & (odd < index * 0.04 + 0.04)] = value
        return rows

    def tabpfn(self, rows: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            outputs = [
                self.network(member[:, None], None, kv_cache=cache, x_is_test_only=True)[:, 0]
                for member, cache in zip(rows, self.caches, strict=True)
            ]
        return torch.stack(outputs).float()

    def wobble(self, rows: torch.Tensor) -> torch.Tensor:
        """[members, rows]: how far tabpfn's probabilities move when each weight moves to the next float32.

        The farthest of eight moves: what float32 leaves open in a row's answer, whoever computes it.
        """
        generator, answer, moves = torch.Generator().manual_seed(0), self.tabpfn(rows), []
        for _ in range(8):
            network = copy.deepcopy(self.network)
            with torch.no_grad():
                for weights in network.parameters():
                    up = torch.rand(weights.shape, generator=generator) < 0.5
                    weights.copy_(torch.nextafter(weights, torch.where(up, math.inf, -math.inf)))
            moves.append(distances(dataclasses.replace(self, network=network).tabpfn(rows), answer))
        return torch.stack(moves).amax(0)

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        return BUILDERS[self.arch](self.network, [CacheGroup(self.caches, torch.zeros(0))], "multiclass", dtype)

    def compiled(self, rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self.build(dtype)(rows)


def draw_network(arch: str, seed: int = 0, **options: Any) -> Any:
    """Every projection drawn, those that start at zero too; cells' and output's large: answers differ by row."""
    module = architectures.ARCHITECTURES[arch]
    config, unused = module.parse_config({**TINY, **({} if arch == "tabpfn_v2" else THINKING), **options})
    assert not unused
    torch.manual_seed(seed)
    network: Any = module.get_architecture(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2.0)
            elif not parameter.any():
                parameter.normal_(0, 0.2)
        for projection in (*network.feature_group_embedder.parameters(), network.output_projection[2].weight):
            projection *= 8
    return network.eval()


def fit(network: Any, features: torch.Tensor, labels: torch.Tensor) -> Any:
    with torch.inference_mode():
        _, cache = network(features, labels, return_kv_cache=True)
    assert cache is not None
    return cache


def distances(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Each row's largest difference between probabilities of classes, or of the regressor's bars."""
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    return (got.softmax(-1) - expected.softmax(-1)).abs().amax(-1)


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float(distances(got, expected).max())


def check(group: Group, num_rows: int) -> None:
    rows = group.rows(num_rows)
    assert distance(group.compiled(rows), group.tabpfn(rows)) <= 1e-5
