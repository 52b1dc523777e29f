"""Encodes one request as a float64 matrix, by the columns of the model's context.

TabPFN infers types over the whole batch that it is given, so the string of one caller can change or break the row of
another. Here every request is encoded alone, column by column, into exactly the numbers of tabpfn's own cleaning
step. `context_fit.py` compares the two on the whole context when a model is loaded. Only such matrices are joined.

What a cell may be, by its column's kind, and what it becomes:

| kind     | accepted                                        | becomes                                               |
|----------|-------------------------------------------------|-------------------------------------------------------|
| number   | number, true/false, null                        | itself, 1/0, missing                                  |
| category | string, number, true/false, null                | its code; a category that the context lacks is        |
|          |                                                 | "unknown", as in TabPFN, and never an error. Numbers  |
|          |                                                 | and flags meet texts by the rule of category_texts.py |
| text     | as category                                     | as category                                           |
| datetime | string of the form in datetimes.py, null        | days since 1970, hour, weekday, month                 |

A number column that was empty in the context accepts what a category does, and each cell is missing, as in TabPFN.
Callers in Python may also give dates as such, in lists, in numpy arrays and in Arrow arrays.

Everything else is refused with row and column: another type, infinities, numbers beyond float32 (the network would
see an infinity) or beyond what the model's preprocessing can transform (`Coding.limits`), a column that the model does
not have, a column that the record lacks (missing is said with null).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from serve.core import Cells, Column, Matrix, QueryTable
from serve.core.errors import InvalidInput
from serve.engine.cell_readers import (
    MAX_MAGNITUDE,
    Reader,
    python_values,
    read_categories,
    read_empty,
    read_numbers,
    readers_of,
)
from serve.engine.coding import Coding, RawCell, feature_names, width
from serve.engine.refusals import Refused, raise_first_fault


class RowEncoder:
    """Reads the cells of a table by the kinds of the columns, and codes them.

    Args:
        columns: the input columns of the context, in order.
        codings: one per matrix column (`coding.feature_names`); without them the encoder can only `read`.
    """

    def __init__(self, columns: Sequence[Column], codings: Sequence[Coding] | None = None) -> None:
        self.columns = tuple(columns)
        self.codings = None if codings is None else tuple(codings)
        self._names = tuple(column.name for column in columns)
        if codings is not None and len(codings) != len(feature_names(columns)):
            raise AssertionError("this is a bug: one coding per matrix column")
        self._readers = readers_of(columns, self.codings)
        # Most columns hold numbers that pass through; only the others are coded.
        self._coded = [(i, coding) for i, coding in enumerate(self.codings or ()) if not coding.is_identity]
        # To add 0.0 makes -0.0 positive, and to add -0.0 changes nothing.
        signless = [coding.is_identity and not coding.keeps_zero_sign for coding in self.codings or ()]
        starts = np.cumsum([0, *(width(column) for column in columns)]).tolist()
        self._empty = [start for start, read in zip(starts, self._readers, strict=False) if read is read_empty]
        self._zeros = np.where([signless], 0.0, -0.0) if any(signless) else None
        self._limited = [i for i, coding in enumerate(self.codings or ()) if coding.limits is not None]
        self._limits = np.array([coding.limits for coding in self.codings or () if coding.limits is not None]).T
        has_single = self.codings and not self._empty
        self._single = SingleRow(_single_columns(columns, self._readers, self.codings or ())) if has_single else None

    def limited_to(self, limits: Mapping[int, tuple[float, float]]) -> RowEncoder:
        """The same encoder with `Coding.limits` for some matrix columns, by their position."""
        codings = [replace(coding, limits=limits.get(i)) for i, coding in enumerate(self.codings or ())]
        return RowEncoder(self.columns, codings)

    def encode(self, table: QueryTable) -> Matrix:
        """Float64 [rows, matrix columns]; the columns of the table may come in any order. Raises InvalidInput."""
        matrix = self._encode_single(table)
        if matrix is None:
            matrix = self.encode_raw(self.read(table))
        if self._limited:
            self._check_limits(matrix)
        return matrix

    def _encode_single(self, table: QueryTable) -> Matrix | None:
        """The matrix of one row of usual cells; None for every other table."""
        if table.num_rows != 1 or table.names != self._names or self._single is None:
            return None
        try:
            row = self._single.encode(table.columns)
        except Refused:
            return None
        if row is None:
            return None
        matrix = np.array([row], dtype=np.float64)
        return matrix if self._zeros is None else np.add(matrix, self._zeros, matrix)

    def read(self, table: QueryTable) -> list[list[RawCell]]:
        """Raw cells, one list per matrix column.

        Raises:
            InvalidInput: names the first row with a fault, and its column.
        """
        raw: list[list[RawCell]] = []
        try:
            for read, cells in zip(self._readers, self._in_order(table), strict=True):
                raw += read(cells)
        except Refused:
            raise_first_fault(table, [python_values(cells) for cells in table.columns], self.columns, self._readers)
        return raw

    def encode_raw(self, raw: Sequence[Sequence[RawCell]]) -> Matrix:
        """Float64 [rows, matrix columns] of the cells that `read` returned."""
        assert self.codings is not None, "this is a bug: encoding before the codings are known"
        encoded = list(raw)
        for position, coding in self._coded:
            encoded[position] = coding.encode(encoded[position])
        matrix = np.ascontiguousarray(np.array(encoded, dtype=np.float64).T)
        if self._zeros is not None:
            np.add(matrix, self._zeros, matrix)
        for position in self._empty:  # a string here makes tabpfn infer the types of the whole row anew
            matrix[[isinstance(cell, str) for cell in raw[position]]] += 0.0
        return matrix

    def _check_limits(self, matrix: Matrix) -> None:
        """Raises InvalidInput for the first number that the preprocessing cannot transform."""
        numbers, (lowest, highest) = matrix[:, self._limited], self._limits
        beyond = np.argwhere((numbers < lowest) | (numbers > highest))
        if len(beyond):
            row, place = map(int, beyond[0])
            parts = [column.name for column in self.columns for _ in feature_names([column])]
            name = parts[self._limited[place]]
            raise InvalidInput(
                f"row {row}, column {name!r}: the number is beyond what the model's preprocessing can transform; "
                f"it takes {lowest[place]:.6g} to {highest[place]:.6g}",
                code="out_of_range", row=row, column=name,
            )  # fmt: skip

    def _in_order(self, table: QueryTable) -> Sequence[Cells]:
        """The table's columns in the order of the context's. Raises Refused where the names differ."""
        if table.names == self._names:
            return table.columns
        by_name = dict(zip(table.names, table.columns, strict=True))
        if by_name.keys() != set(self._names):
            raise Refused("the names differ")
        return [by_name[name] for name in self._names]


Read: TypeAlias = Callable[[Cells], Sequence[Any]]
"""The numbers of one column's cell, one or more. Raises what the row encoder's readers raise."""


_PASSES: Mapping[Any, float] = MappingProxyType({})
"""In place of codes: the numbers pass through."""


class SingleColumn(NamedTuple):
    """How one column's cell becomes its number.

    Attributes:
        takes_text: the cell is a string, not a number.
        codes: the number of each known value; `_PASSES` passes numbers through.
        read: reads the cell in place of the above.
    """

    takes_text: bool
    codes: Mapping[Any, float]
    unknown: float
    missing: float
    read: Read | None = None


class SingleRow:
    """Encodes one row of cells in one loop: the request of a real-time caller.

    The encoder of tables works column by column. For one row, most of that time goes into the lists and calls around
    each cell. The numbers are the same, to the bit. A row with a cell that is not among the usual ones gives None: the
    encoder of tables then reads the row, and finds the fault if there is one.
    """

    def __init__(self, columns: Sequence[SingleColumn]) -> None:
        self._columns = tuple(columns)

    def encode(self, columns: Sequence[Cells]) -> list[Any] | None:
        """The numbers of one row whose columns each hold one cell; None where a cell is unusual."""
        row: list[Any] = []
        append = row.append
        for (takes_text, codes, unknown, missing, read), (cell,) in zip(self._columns, columns, strict=True):
            kind = type(cell)
            if read is not None:
                row += read((cell,))
            elif takes_text:
                if kind is str:
                    append(codes.get(cell, unknown))
                elif cell is None:
                    append(missing)
                else:
                    return None
            elif kind is float or kind is int:
                if not -MAX_MAGNITUDE <= cell <= MAX_MAGNITUDE:
                    return None
                append(cell if codes is _PASSES else codes.get(float(cell), unknown))
            elif cell is None:
                append(math.nan if codes is _PASSES else missing)
            else:
                return None
        return row


def _single_columns(
    columns: Sequence[Column], readers: Sequence[Reader], codings: Sequence[Coding]
) -> list[SingleColumn]:
    """One per column: by its coding where the reader is a plain one, else by the reader."""
    singles: list[SingleColumn] = []
    position = 0
    for column, read in zip(columns, readers, strict=True):
        own = codings[position : position + width(column)]
        position += len(own)
        is_text = read is read_categories
        if (is_text or read is read_numbers) and not (is_text and own[0].is_identity):
            (coding,) = own
            codes = {} if coding.constant is not None else _PASSES if coding.codes is None else coding.codes
            unknown, missing = coding.unknown, coding.missing
            if coding.constant is not None:
                unknown = missing = coding.constant
            singles.append(SingleColumn(is_text, codes, unknown, missing))
        else:
            singles.append(SingleColumn(is_text, {}, math.nan, math.nan, partial(_read_single, read, own)))
    return singles


def _read_single(read: Reader, codings: Sequence[Coding], cells: Cells) -> list[RawCell]:
    return [coding.encode(raw)[0] for raw, coding in zip(read(cells), codings, strict=True)]
