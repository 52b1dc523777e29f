"""The states of a replica."""

from __future__ import annotations

import enum


class ServerState(enum.StrEnum):
    """A replica's life, in order; it never goes back."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"
