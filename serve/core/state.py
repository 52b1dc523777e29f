"""The states of a replica."""

from __future__ import annotations

import enum


class ServerState(enum.StrEnum):
    """A replica's life, in order; it never goes back."""

    STARTING = "starting"
    READY = "ready"
    LAME_DUCK = "lame_duck"
    """Not ready any more, so that a router sends no more requests, and every request is still served."""
    DRAINING = "draining"
    CLOSED = "closed"
