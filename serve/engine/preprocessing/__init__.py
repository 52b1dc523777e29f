"""The fitted preprocessing of an ensemble, compiled: clean rows in, the network's inputs out.

Theory of operation. tabpfn runs every member's fitted pipeline separately, through pandas and scikit-learn, which takes
milliseconds per member. Here the fitted steps of all members are translated, once, into one graph of columns
(`graph.py`). Selections and permutations become column numbers, equal columns are computed once for all members, like
operations run as one call, and the last gather lays out [members, rows, width].

What is always true:
- the result equals that of tabpfn's own transforms. Where a fingerprint is added, it equals what they give for the row
  alone, because a hash turns the last bit of a value into another feature altogether;
- a row's result does not depend on the other rows, to the bit. Operations are elementwise. Projections add the products
  of each row in one fixed order (`joins.py`). Whether any value of a call is infinite may vary; it only decides whether
  masks are skipped that would change nothing;
- infinities are removed first and put back last, where tabpfn does so: before and after the float64 steps, and again
  around the float32 steps, where a value beyond float32's range has become infinite;
- a member with a step that has no translation is prepared by tabpfn's code as a whole, and listed in `uncompiled`.
  tabpfn's code may raise an error for a finite number; `limits.py` finds out which, and the row encoder refuses it.

Preprocessing runs on the host, in numpy, whatever the device of the network. A request has few rows, for which a numpy
call takes about a microsecond and a kernel launch five; the hash is computed on the host in any case; and float64 is
slow on most GPUs. The groups lie in one tensor, so one copy brings them to a GPU (`compiled.py`). With
`ENABLE_GPU_PREPROCESSING` on a GPU tabpfn computes the float32 steps there, so its last bits, and a fingerprint behind
them, are that GPU's; here they are the host's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from serve.core import Matrix
from serve.engine.preprocessing.graph import Array
from serve.engine.preprocessing.member import Graphs, TabPFNMember, translate_member
from serve.engine.preprocessing.steps import TorchColumn
from serve.engine.preprocessing.transformers import Untranslatable

Groups: TypeAlias = Sequence[Sequence[int]]


def compile_preprocessing(
    members: Sequence[Any], groups: Groups | Callable[[Sequence[int]], Groups] | None = None
) -> Preprocessing:
    """Translate the fitted members of an estimator.

    Args:
        members: `estimator.executor_.ensemble_members`.
        groups: for each group of members that run in one forward pass, their positions; the members of a group have
            equal widths. Or a function that makes the groups from the members' widths. None groups all members of one
            width, in the order of first appearance.

    Raises:
        ValueError: the members of a group differ in width.
    """
    graphs = Graphs.empty()
    uncompiled: dict[str, None] = {}
    parts: list[list[TorchColumn] | TabPFNMember] = []
    for member in members:
        try:
            parts.append(translate_member(member, graphs))
        except Untranslatable as error:
            uncompiled[str(error)] = None
            parts.append(TabPFNMember(member))
    widths = [part.measure_width() if isinstance(part, TabPFNMember) else len(part) for part in parts]
    if groups is None:
        groups = [[i for i, w in enumerate(widths) if w == width] for width in dict.fromkeys(widths)]
    elif callable(groups):
        groups = groups(widths)
    for group in groups:
        if len({widths[position] for position in group}) > 1:
            raise ValueError(f"members {list(group)} differ in width: {[widths[position] for position in group]}")
    return Preprocessing(graphs, parts, widths, groups, tuple(uncompiled))


class Preprocessing:
    """Prepares rows for every member.

    Attributes:
        groups: for each tensor of the answer, the positions of its members.
        columns: for each group, int64 [members, width]; columns of one number hold the same values for any rows.
        widths: number of columns of each member.
        uncompiled: names of the classes because of which tabpfn prepares members; empty where all are compiled.
    """

    def __init__(
        self,
        graphs: Graphs,
        parts: Sequence[list[TorchColumn] | TabPFNMember],
        widths: Sequence[int],
        groups: Sequence[Sequence[int]],
        uncompiled: tuple[str, ...],
    ) -> None:
        self.groups = tuple(tuple(group) for group in groups)
        self.widths = tuple(widths)
        self.uncompiled = uncompiled
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

    def new_tensor(self, num_rows: int, *, is_pinned: bool) -> torch.Tensor:
        """Memory for prepared rows: float32 [1, rows, values of a row], in which one group follows the other.

        A GPU copies from pinned memory while the host goes on.
        """
        num_values = sum(len(group) * self.widths[group[0]] for group in self.groups)
        return torch.empty((1, num_rows, num_values), dtype=torch.float32, pin_memory=is_pinned)

    def split(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """For each group, its part of a tensor that `new_tensor` made: [members, rows, width]."""
        shapes = [(len(group), whole.shape[1], self.widths[group[0]]) for group in self.groups]
        parts = torch.split(whole.view(-1), [math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def __call__(self, rows: Matrix, whole: torch.Tensor | None = None) -> list[torch.Tensor]:
        """For each group, the prepared rows: float32 [members, rows, width], parts of one tensor on the host.

        Args:
            rows: clean rows, float64 [rows, features], as for the members' `transform_X_test`.
            whole: the tensor to write into, made by `new_tensor`; None makes one.
        """
        outputs = self.split(self.new_tensor(len(rows), is_pinned=False) if whole is None else whole)
        # numpy's warnings about NaN and values beyond float32, which tabpfn also silences or does not cause
        with np.errstate(all="ignore"):
            infinite, values = self._compute(rows)
            for layout, output in zip(self._layouts, outputs, strict=True):
                layout.write(output.numpy(), values, infinite, rows)
        return outputs

    def _compute(self, rows: Matrix) -> tuple[Array | None, Array]:
        """The infinities among the inputs of the float32 part, or None, and all its columns [columns, rows]."""
        given, infinite = _take_infinite(rows.T.take(self._features, axis=0))
        handed = self._double(given).take(self._handed, axis=0)
        if infinite is not None:
            handed = _put_back(handed, infinite, self._handed_origins)
        given, infinite = _take_infinite(handed.astype(np.float32))
        return infinite, self._single(given)


class _Layout:
    """Positions of a group's columns among the computed columns."""

    def __init__(
        self,
        group: Sequence[int],
        parts: Sequence[list[TorchColumn] | TabPFNMember],
        place: dict[int, int],
        origin_place: dict[int, int],
    ) -> None:
        self.group = group
        translated = [(i, part) for i, part in enumerate(parts[p] for p in group) if isinstance(part, list)]
        self._by_tabpfn = [(i, part) for i, part in enumerate(parts[p] for p in group) if not isinstance(part, list)]
        self._positions: NDArray[np.intp] | slice = np.array([i for i, _ in translated], dtype=np.intp)
        if not self._by_tabpfn:
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
        """Fill `output` [members, rows, width]."""
        if len(self._columns):
            own = values.take(self._columns, axis=0)
            if infinite is not None:
                own = _put_back(own, infinite, self._origins)
            output[self._positions] = own.swapaxes(1, 2)
        for position, member in self._by_tabpfn:
            output[position] = member(rows)


def _take_infinite(values: Array) -> tuple[Array, Array | None]:
    """The values with NaN in place of infinities, and the infinities with 0 elsewhere, or None if there are none."""
    mask = np.isinf(values)
    if not mask.any():
        return values, None
    return np.where(mask, np.nan, values), np.where(mask, values, 0)


def _put_back(values: Array, infinite: Array, origins: NDArray[np.intp]) -> Array:
    """Values [..., rows] with the infinities of their origins [...] put back; -1 is no origin."""
    own = np.where((origins >= 0)[..., None], infinite.take(origins, axis=0), 0)
    return np.where(np.isinf(own), own, values)
