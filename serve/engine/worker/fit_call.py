"""The call that fits a model in the worker: a context may hold only what its frame can carry."""

from __future__ import annotations

from dataclasses import replace

from serve.core import ModelDefinition
from serve.core.errors import InvalidModel
from serve.engine.worker import wire
from serve.engine.worker.messages import Fit

_CELL_TYPES = {str, int, float, bool, type(None)}


def fit_frame(model: ModelDefinition) -> bytes:
    """The call that fits a model. Raises InvalidModel where a value of its context cannot cross."""
    place = f"model {model.name!r} version {model.version!r}"
    for name, cells in model.context.cells.items():
        if set(map(type, cells)) - _CELL_TYPES:
            row, cell = next((row, cell) for row, cell in enumerate(cells) if type(cell) not in _CELL_TYPES)
            kind = type(cell).__name__
            raise InvalidModel(
                f"{place}: context row {row}, column {name!r}: a cell of type {kind}; a cell is a string, a number, "
                "true, false or null"
            )
    try:
        # the engine reads no example, which may hold integers beyond MessagePack's 64 bits
        return wire.encode(Fit(replace(model, example=None)))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidModel(f"{place}: it cannot be sent to the engine's worker process: {error}") from error
