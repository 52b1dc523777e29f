"""A regressor's answer from the bars of its members: translation to common bars, then mean and quantiles.

It computes what tabpfn 9.2 does in `translate_probs_across_borders`, `FullSupportBarDistribution.mean` and `icdf`, by
the same operations in the same order. Every table is made once and lies on the device, all members and levels are
computed together, and no operation asks the device for a value. So a GPU's graph can hold it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tabpfn.utils import _remap_weights


class BarTranslation:
    """Probabilities on the members' own bars to probabilities on common bars.

    Args:
        borders: of each member's bars, float [bars + 1].
        common: borders of the common bars.
    """

    def __init__(self, borders: Sequence[torch.Tensor], common: torch.Tensor) -> None:
        common = common.double()
        by_borders: dict[bytes, list[int]] = {}
        for position, own in enumerate(borders):
            by_borders.setdefault(own.double().cpu().numpy().tobytes(), []).append(position)
        groups = [(borders[positions[0]].double(), positions) for positions in by_borders.values()]
        self._maps = [_BarMap(own, common, positions) for own, positions in groups if not torch.equal(own, common)]

    def __call__(self, probabilities: torch.Tensor) -> torch.Tensor:
        """float32 [members, rows, bars] to the same shape, in place."""
        for one in self._maps:
            one.translate(probabilities)
        return probabilities


class _BarMap:
    """The translation of the members whose bars have the same borders."""

    def __init__(self, own: torch.Tensor, common: torch.Tensor, members: Sequence[int]) -> None:
        device = own.device
        weights = _remap_weights(own, common, dtype=torch.float32)
        self._members = torch.tensor(members, device=device)
        self._source, self._destination, self._weight, self._lower_tail, self._upper_tail = (
            table.to(device)
            for table in (
                weights.source, weights.destination, weights.weight, weights.lower_tail, weights.upper_tail,
            )
        )  # fmt: skip
        counts = weights.pairs_per_destination
        self._offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(device)

    def translate(self, probabilities: torch.Tensor) -> None:
        own = probabilities.index_select(0, self._members).flatten(0, 1)
        total = own[:, :1] * self._lower_tail + own[:, -1:] * self._upper_tail
        if own.device.type == "cpu":
            total.index_add_(1, self._destination, own.index_select(1, self._source).mul_(self._weight))
        else:  # `index_add_` sums in any order on a GPU; `unsafe` leaves out checks that wait for it
            parts = own.T.index_select(0, self._source).mul_(self._weight[:, None])
            total += torch.segment_reduce(parts, "sum", offsets=self._offsets, axis=0, unsafe=True).T
        probabilities.index_copy_(0, self._members, total.view(len(self._members), -1, total.shape[1]))


class BarStatistics:
    """Mean and quantiles of distributions over common bars.

    Args:
        bars: tabpfn's `FullSupportBarDistribution`, on the device. Half-normal tails replace its outer bars.
        levels: shares of the distribution below the quantiles, each above 0 and below 1.
    """

    def __init__(self, bars: Any, levels: Sequence[float]) -> None:
        self._borders, self._widths = bars.borders, bars.bucket_widths
        lower, upper = (bars.halfnormal_with_p_weight_before(width) for width in (self._widths[0], self._widths[-1]))
        self._means = self._borders[:-1] + self._widths / 2
        self._means[0], self._means[-1] = self._borders[1] - lower.mean, self._borders[-2] + upper.mean
        self._tails = ((self._borders[1], -lower.base_dist.scale), (self._borders[-2], upper.base_dist.scale))
        self._levels = torch.tensor(levels, dtype=torch.float32, device=self._borders.device)

    def __call__(self, logs: torch.Tensor) -> torch.Tensor:
        """float32 [rows, bars], logarithms of probabilities up to a factor, to float64 [rows, 1 + levels].

        The mean comes first, then the quantiles in the order of the levels.
        """
        shares = torch.softmax(logs, -1)
        exact = shares if self._means.dtype == shares.dtype else torch.softmax(logs.to(self._means.dtype), -1)
        mean = (exact @ self._means)[:, None]
        return torch.cat([mean.double(), self._quantiles(shares, self._levels).double()], dim=1)

    def slack(self, logs: torch.Tensor, share: float) -> torch.Tensor:
        """How far each statistic moves where so small a share of the distribution moves: float64, as the statistics.

        Beside bars that are nearly empty a quantile moves far with the last bit of a probability. The mean does not.
        """
        shares = torch.softmax(logs, -1)
        there = self._quantiles(shares, self._levels)
        moved = [self._quantiles(shares, (self._levels + by).clamp(1e-6, 1 - 1e-6)) for by in (-share, share)]
        largest = torch.stack([(other - there).abs() for other in moved]).amax(dim=0)
        return F.pad(largest.double(), (1, 0))

    def _quantiles(self, shares: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        last = shares.shape[1] - 1
        below = torch.cumsum(shares, -1)
        levels = levels.repeat(len(shares), 1)
        bar = torch.searchsorted(below, levels).clamp(max=last)
        before = torch.cat([torch.zeros_like(below[:, :1]), below[:, :-1]], dim=-1)
        # where in its bar a quantile lies, 0 to 1
        place = ((levels - before.gather(1, bar)) / shares.gather(1, bar)).clamp(0.0, 1.0)
        values = self._borders[bar] + self._widths[bar] * place
        values = torch.where(bar == 0, _in_tail(*self._tails[0], 1.0 - place), values)
        return torch.where(bar == last, _in_tail(*self._tails[1], place), values)


def _in_tail(start: torch.Tensor, scale: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The place in a half-normal tail that has a share of it between itself and the start (`HalfNormal.icdf`)."""
    return start + scale * torch.erfinv(2 * ((share + 1) / 2) - 1) * math.sqrt(2)
