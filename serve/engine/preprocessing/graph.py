"""Columns as a graph: each column that any member needs is computed once, and like columns are computed together.

A column is an input, or one operation on other columns. Two columns are equal when their operation, parameters (to the
bit) and sources are equal. Members that were fitted on one context differ mostly in the order of their columns, so
eight of them share nearly all their work. A plan runs the graph in a few vectorised calls: columns of one depth, one
operation and equal parameter shapes are one call with stacked parameters.

Values are laid out as [columns, rows], the rows of a column side by side, so that gathering columns copies whole lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""float64, or float32 in the part that tabpfn computes in torch."""


class Operation(Protocol):
    """A fitted operation on columns. It treats each row alone, so a result never depends on other rows.

    It is constructed from its parameters. For an elementwise operation they are stacked over the columns of a call,
    [columns, ...]; an operation that joins columns (`Graph.join`) takes its own as they are.
    """

    def __init__(self, *parameters: Array) -> None: ...

    def __call__(self, x: Array) -> Array:
        """Results [columns, rows] of sources [columns, rows], or [sources, columns, rows] where each has several."""
        ...


@dataclass(frozen=True, eq=False)
class _Node:
    kind: type[Operation]
    parameters: tuple[Array, ...]
    sources: tuple[int, ...]
    depth: int
    columns: tuple[int, ...]
    joins: bool

    def batch_key(self, serial: int) -> tuple[Any, ...]:
        """Equal for nodes that may run in one call."""
        if self.joins:
            return (self.depth, self.kind.__qualname__, serial)
        shapes = tuple(parameter.shape for parameter in self.parameters)
        return (self.depth, self.kind.__qualname__, len(self.sources), shapes)


@dataclass(frozen=True)
class _Call:
    operation: Operation
    sources: NDArray[np.intp]
    start: int
    stop: int


@dataclass
class Plan:
    """The calls that compute a graph, in order."""

    dtype: np.dtype[Any]
    inputs: list[int]
    """Numbers of the used inputs, in the order in which `__call__` takes them."""
    place: dict[int, int] = field(default_factory=dict)
    """The position of each column in the result."""
    calls: list[_Call] = field(default_factory=list)

    def __call__(self, inputs: Array) -> Array:
        """Inputs [used inputs, rows] to all columns [columns, rows], the inputs first."""
        values: Array = np.empty((len(self.place), inputs.shape[1]), dtype=self.dtype)
        values[: len(self.inputs)] = inputs
        for call in self.calls:
            values[call.start : call.stop] = call.operation(values.take(call.sources, axis=0))
        return values


class Graph:
    """Columns, by number. Adding an equal column again returns the same number."""

    def __init__(self, dtype: type[np.floating[Any]]) -> None:
        self.dtype = np.dtype(dtype)
        self._inputs: dict[int, int] = {}
        self._owner: list[_Node | None] = []
        self._known: dict[tuple[Any, ...], _Node] = {}

    def input(self, number: int) -> int:
        """The column of input `number`."""
        if number not in self._inputs:
            self._inputs[number] = len(self._owner)
            self._owner.append(None)
        return self._inputs[number]

    def add(self, kind: type[Operation], sources: int | Sequence[int], *parameters: Any) -> int:
        """A column that is computed element by element from its source, or from a few sources."""
        parents = (sources,) if isinstance(sources, int) else tuple(sources)
        values = tuple(np.array(parameter, dtype=self.dtype) for parameter in parameters)
        return self._node(kind, parents, values, 1, joins=False).columns[0]

    def join(
        self, kind: type[Operation], sources: Sequence[int], num_columns: int, *parameters: Array
    ) -> tuple[int, ...]:
        """`num_columns` columns that each depend on all sources."""
        return self._node(kind, tuple(sources), parameters, num_columns, joins=True).columns

    def _node(
        self, kind: type[Operation], sources: tuple[int, ...], parameters: tuple[Array, ...], size: int, *, joins: bool
    ) -> _Node:
        # with strides, because they decide which routine multiplies a matrix, and so its rounding
        exact = tuple((p.shape, p.strides, p.dtype.str, p.tobytes()) for p in parameters)
        key = (kind, sources, exact)
        if key not in self._known:
            owners = [self._owner[source] for source in sources]
            depth = 1 + max((owner.depth for owner in owners if owner is not None), default=0)
            columns = tuple(range(len(self._owner), len(self._owner) + size))
            node = _Node(kind, parameters, sources, depth, columns, joins)
            self._known[key] = node
            self._owner += [node] * size
        return self._known[key]

    def plan(self, wanted: Sequence[int]) -> Plan:
        """The calls that compute the wanted columns and their sources, and no others."""
        nodes, inputs = self._needed(wanted)
        numbers = {column: number for number, column in self._inputs.items()}
        plan = Plan(self.dtype, [numbers[column] for column in inputs])
        for column in inputs:
            plan.place[column] = len(plan.place)
        batches: dict[tuple[Any, ...], list[_Node]] = {}
        for serial, node in enumerate(nodes):
            batches.setdefault(node.batch_key(serial), []).append(node)
        for _, batch in sorted(batches.items(), key=lambda item: item[0][0]):
            plan.calls.append(_call(batch, plan.place))
        return plan

    def _needed(self, wanted: Sequence[int]) -> tuple[list[_Node], list[int]]:
        nodes: dict[_Node, None] = {}
        inputs: dict[int, None] = {}
        waiting = list(wanted)
        while waiting:
            column = waiting.pop()
            node = self._owner[column]
            if node is None:
                inputs[column] = None
            elif node not in nodes:
                nodes[node] = None
                waiting += node.sources
        return list(nodes), sorted(inputs)


def _call(batch: list[_Node], place: dict[int, int]) -> _Call:
    first, start = batch[0], len(place)
    for node in batch:
        for column in node.columns:
            place[column] = len(place)
    sources = np.array([[place[source] for source in node.sources] for node in batch], dtype=np.intp)
    if first.joins:
        return _Call(first.kind(*first.parameters), sources[0], start, len(place))
    stacked = [np.stack([node.parameters[i] for node in batch]) for i in range(len(first.parameters))]
    return _Call(first.kind(*stacked), sources[:, 0] if sources.shape[1] == 1 else sources.T, start, len(place))
