"""The states of a replica."""

from __future__ import annotations

import enum


class ServerState(enum.StrEnum):
    """The states of a replica, in order. It never returns to an earlier one."""

    STARTING = "starting"
    READY = "ready"
    LAME_DUCK = "lame_duck"
    """Not ready, so that a router sends no more requests. Every request is still served."""
    DRAINING = "draining"
    CLOSED = "closed"
