"""The number formats of the engine by name, and how far each may move an answer."""

from typing import Literal

Precision = Literal["float32", "bfloat16", "float16", "auto"]

# Ten times what was measured or more (docs/decisions). `auto` may mean any format, so it has the largest.
_TOLERANCES: dict[Precision, float] = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 2e-2, "auto": 2e-2}


def tolerance_of(*formats: Precision) -> float:
    """The largest difference between answers that the least exact of some formats explains."""
    return max(_TOLERANCES[name] for name in formats)
