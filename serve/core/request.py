"""One request for predictions, as every part behind the door sees it."""

from __future__ import annotations

import enum


class Priority(enum.StrEnum):
    """Who goes first: a caller who waits for the answer, or one who sends rows by the thousand."""

    INTERACTIVE = "interactive"
    BULK = "bulk"
