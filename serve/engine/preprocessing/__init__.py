"""The fitted preprocessing of an ensemble, compiled: clean rows in, what the network reads out.

Theory of operation. The library runs every member's fitted pipeline by itself, through pandas and scikit-learn:
milliseconds a member. Here the fitted steps of all members are translated, once, into one graph of columns
(`graph.py`): selections and permutations vanish into column numbers, equal columns are computed once for all members,
like operations run as one call, and the last gather lays out [members, rows, width].

What is always true:
- the answer is what the library's own transforms give, and, where a fingerprint is added, what they give for the row
  alone: a hash turns the last bit of a value into another feature altogether;
- a row's result does not depend on the other rows, to the bit: operations are elementwise or, in projections, go row
  by row in one fixed shape (`joins.py`). What may vary between calls, such as whether any value is infinite, only
  decides whether masks that change nothing are skipped;
- infinities are taken out first and put back last, where the library does so: before and after the float64 steps, and
  again around the float32 ones, where a value beyond float32's range has become infinite;
- a member with a step that has no translation runs by the library's code, whole, and is reported in `uncompiled`.

It runs on the host, in numpy, whatever the device of the network: a request has few rows, for which a numpy call costs
about a microsecond and a kernel launch five; the hash is the host's in any case; and float64 is slow on most GPUs.
One copy then brings all groups to the device. With `ENABLE_GPU_PREPROCESSING` on a GPU the library computes the float32
steps there, and its last bits, and so a fingerprint behind them, are those of that GPU; ours are the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from serve.core import Matrix
from serve.engine.preprocessing.graph import Array
from serve.engine.preprocessing.member import Graphs, LibraryMember, translate_member
from serve.engine.preprocessing.steps import TorchColumn
from serve.engine.preprocessing.transformers import Untranslatable

Groups: TypeAlias = Sequence[Sequence[int]]


def compile_preprocessing(
    members: Sequence[Any], device: torch.device, groups: Groups | Callable[[Sequence[int]], Groups] | None = None
) -> Preprocessing:
    """Translate the fitted members of an estimator, `estimator.executor_.ensemble_members`.

    Args:
        groups: positions of the members that one forward takes together, which must be of equal width, or what makes
            them of the members' widths; by default all members of one width, in the order of first appearance.

    Raises:
        ValueError: a group's members differ in width.
    """
    graphs = Graphs.empty()
    uncompiled: dict[str, None] = {}
    parts: list[list[TorchColumn] | LibraryMember] = []
    for member in members:
        try:
            parts.append(translate_member(member, graphs))
        except Untranslatable as error:
            uncompiled[str(error)] = None
            parts.append(LibraryMember(member))
    widths = [part.measure_width() if isinstance(part, LibraryMember) else len(part) for part in parts]
    if groups is None:
        groups = [[i for i, w in enumerate(widths) if w == width] for width in dict.fromkeys(widths)]
    elif callable(groups):
        groups = groups(widths)
    for group in groups:
        if len({widths[position] for position in group}) > 1:
            raise ValueError(f"members {list(group)} differ in width: {[widths[position] for position in group]}")
    return Preprocessing(graphs, parts, widths, groups, device, tuple(uncompiled))


class Preprocessing:
    """Every member's rows, as the network is given them.

    Attributes:
        groups: positions of the members in each answered tensor.
        columns: for each group, int64 [members, width]: columns of one number hold the same values, whatever the rows.
        widths: columns of each member.
        uncompiled: names of the classes that made members run by the library's code; empty when all are compiled.
    """

    def __init__(
        self,
        graphs: Graphs,
        parts: Sequence[list[TorchColumn] | LibraryMember],
        widths: Sequence[int],
        groups: Sequence[Sequence[int]],
        device: torch.device,
        uncompiled: tuple[str, ...],
    ) -> None:
        self.groups = tuple(tuple(group) for group in groups)
        self.widths = tuple(widths)
        self.uncompiled = uncompiled
        self._device = device
        wanted = [column.column for part in parts if isinstance(part, list) for column in part]
        self._single = graphs.single.plan(wanted)
        handed = list(graphs.handed)
        pairs = [handed[number] for number in self._single.inputs]
        self._double = graphs.double.plan([column for column, _ in pairs])
        self._features = np.array(self._double.inputs, dtype=np.intp)
        feature_place = {feature: place for place, feature in enumerate(self._double.inputs)}
        self._handed = np.array([self._double.place[column] for column, _ in pairs], dtype=np.intp)
        self._handed_origins = np.array([feature_place.get(feature, -1) for _, feature in pairs], dtype=np.intp)
        origin_place = {number: place for place, number in enumerate(self._single.inputs)}
        self._layouts = [_Layout(group, parts, self._single.place, origin_place) for group in self.groups]
        self.columns = tuple(layout.number_columns(self.widths[layout.group[0]]) for layout in self._layouts)

    def __call__(self, rows: Matrix) -> list[torch.Tensor]:
        """For each group, float32 [members, rows, width] on the device.

        Args:
            rows: float64 [rows, features], clean: what the members' `transform_X_test` is given.
        """
        sizes = [len(group) * len(rows) * self.widths[group[0]] for group in self.groups]
        whole = torch.empty(sum(sizes), dtype=torch.float32)
        outputs = [
            part.view(len(group), len(rows), self.widths[group[0]])
            for group, part in zip(self.groups, torch.split(whole, sizes), strict=True)
        ]
        # the library silences or never meets the same warnings, about NaN and values beyond float32
        with np.errstate(all="ignore"):
            infinite, values = self._compute(rows)
            for layout, output in zip(self._layouts, outputs, strict=True):
                layout.write(output.numpy(), values, infinite, rows)
        if self._device.type == "cpu":
            return outputs
        copied = torch.split(whole.to(self._device), sizes)
        return [part.view(output.shape) for part, output in zip(copied, outputs, strict=True)]

    def _compute(self, rows: Matrix) -> tuple[Array | None, Array]:
        """The infinities among the float32 part's inputs, if there are any, and all its columns; [columns, rows]."""
        given, infinite = _take_infinite(rows.T.take(self._features, axis=0))
        handed = self._double(given).take(self._handed, axis=0)
        if infinite is not None:
            handed = _put_back(handed, infinite, self._handed_origins)
        given, infinite = _take_infinite(handed.astype(np.float32))
        return infinite, self._single(given)


class _Layout:
    """Where a group's columns are found."""

    def __init__(
        self,
        group: Sequence[int],
        parts: Sequence[list[TorchColumn] | LibraryMember],
        place: dict[int, int],
        origin_place: dict[int, int],
    ) -> None:
        self.group = group
        translated = [(i, part) for i, part in enumerate(parts[p] for p in group) if isinstance(part, list)]
        self._by_library = [(i, part) for i, part in enumerate(parts[p] for p in group) if not isinstance(part, list)]
        self._positions: NDArray[np.intp] | slice = np.array([i for i, _ in translated], dtype=np.intp)
        if not self._by_library:
            self._positions = slice(None)
        self._columns = np.array([[place[column.column] for column in part] for _, part in translated], dtype=np.intp)
        origins = [[origin_place.get(column.origin, -1) for column in part] for _, part in translated]
        self._origins = np.array(origins, dtype=np.intp)

    def number_columns(self, width: int) -> torch.Tensor:
        """int64 [members, width]; see `Preprocessing`."""
        numbers = np.arange(len(self.group) * width).reshape(len(self.group), width)
        if len(self._columns):
            pairs = np.stack([self._columns.ravel(), self._origins.ravel()], axis=1)
            kinds = np.unique(pairs, axis=0, return_inverse=True)[1]
            numbers[self._positions] = kinds.reshape(self._columns.shape) + numbers.size
        return torch.from_numpy(numbers)

    def write(self, output: Array, values: Array, infinite: Array | None, rows: Matrix) -> None:
        """Fill output [members, rows, width]."""
        if len(self._columns):
            own = values.take(self._columns, axis=0)
            if infinite is not None:
                own = _put_back(own, infinite, self._origins)
            output[self._positions] = own.swapaxes(1, 2)
        for position, member in self._by_library:
            output[position] = member(rows)


def _take_infinite(values: Array) -> tuple[Array, Array | None]:
    """The values with NaN for infinities, and these alone, 0 elsewhere; None for none."""
    mask = np.isinf(values)
    if not mask.any():
        return values, None
    return np.where(mask, np.nan, values), np.where(mask, values, 0)


def _put_back(values: Array, infinite: Array, origins: NDArray[np.intp]) -> Array:
    """Values [..., rows], with the infinities of their origins [...] where these have some; -1 is no origin."""
    own = np.where((origins >= 0)[..., None], infinite.take(origins, axis=0), 0)
    return np.where(np.isinf(own), own, values)
