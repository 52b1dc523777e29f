"""One request for predictions, as every part behind the door sees it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from serve.core.table import QueryTable


class Priority(enum.StrEnum):
    """Which requests go first: those whose callers wait for the answer, or those that send rows by the thousand."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as a caller names it. Without a version, the one that is served under this name."""

    name: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Everything that a caller asked for. A door makes it once; nothing changes it afterwards.

    Attributes:
        model: whose predictions.
        table: the query rows.
        arrived_at: when the server had the request's headers, in seconds of `time.monotonic`.
        deadline: when the caller gives up, on the same clock; infinity for never.
        priority: which queue of the model the rows wait in.
        request_id: the caller's own id, or a new one; in the answer and in every log line about the request.
        principal: the authenticated caller; None where nobody was asked to authenticate.
    """

    model: ModelReference
    table: QueryTable
    arrived_at: float
    deadline: float
    priority: Priority = Priority.INTERACTIVE
    request_id: str = ""
    principal: str | None = None

    @property
    def num_rows(self) -> int:
        """Query rows; 1 or more."""
        return self.table.num_rows
