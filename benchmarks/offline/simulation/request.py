"""What the simulation moves around: contexts, requests and their outcomes."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from serve.core import Priority


class Outcome(enum.IntEnum):
    """How a request ended; of the parts of one request the worst counts. One without an outcome was lost."""

    ANSWERED = 0
    EXPIRED = 1
    """The deadline came before the answer, and the server said so (504, 408)."""
    REFUSED = 2
    """The server is too busy (429, 503)."""
    FAILED = 3
    """The server can not do it at all (400, 500)."""


class Context:
    """The batch key: a fitted context, by its place in the order of popularity. Compared by identity."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


@dataclass(slots=True, eq=False)
class Request:
    """See `serve.batching.QueuedRequest`; times are of the virtual clock."""

    context: Context
    num_rows: int
    priority: Priority
    arrived_at: float
    deadline: float = math.inf
    whole: Request | None = None
    """The request that this one is a piece of, if the client had to cut it up."""
    replica: int = 0
    """Where a router sent it."""
    rows_left: int = field(init=False)
    """Rows that are not answered yet."""
    outcome: Outcome | None = field(default=None, init=False)
    ended_at: float = field(default=math.nan, init=False)
    retry_after_s: float = field(default=0.0, init=False)
    """What a refusal says; 0 where it says nothing."""

    def __post_init__(self) -> None:
        self.rows_left = self.num_rows
