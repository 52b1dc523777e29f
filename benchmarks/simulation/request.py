"""The nouns of the simulation: contexts, requests and their outcomes."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import ClassVar

from serve.core import Priority


class Outcome(enum.IntEnum):
    """How a request ended; of a request in pieces, the worst piece counts. A request without an outcome was lost."""

    ANSWERED = 0
    EXPIRED = 1
    """The deadline passed before the answer, and the server said so (504, 408)."""
    REFUSED = 2
    """The server is too busy (429, 503)."""
    FAILED = 3
    """The server can never answer this request (400, 500)."""


class Context:
    """A fitted context, which is the batch key. `index` is its rank by popularity, from 0. Compared by identity."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


@dataclass(slots=True, eq=False)
class Request:
    """As `serve.batching.QueuedRequest`; times are seconds of the virtual clock."""

    model: ClassVar[str] = "simulated"
    """For the recorder of refusals; the policy does not read it."""

    context: Context
    num_rows: int
    priority: Priority
    arrived_at: float
    deadline: float = math.inf
    whole: Request | None = None
    """The request of which this one is a piece, where its caller had to cut it up."""
    replica: int = 0
    """The replica that the router chose."""
    rows_left: int = field(init=False)
    """Rows that are not answered yet."""
    outcome: Outcome | None = field(default=None, init=False)
    ended_at: float = field(default=math.nan, init=False)
    retry_after_s: float = field(default=0.0, init=False)
    """Stated by a refusal; 0 where the refusal states none."""

    def __post_init__(self) -> None:
        self.rows_left = self.num_rows
