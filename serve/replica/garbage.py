"""Python's garbage collector in a process that serves for long: told to look seldom, and at little."""

from __future__ import annotations

import gc

_NEW_OBJECTS = 10_000
"""Python looks for garbage cycles after this many new objects, about 400 requests; its default is 700. A request
leaves none."""


def leave_alone() -> None:
    """The objects of now live as long as the process. Call once, when the start is done.

    Walking through them takes the collector as long as many batches (130 ms, measured).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
