"""Gives up what opening a pickle does not need: `python -m serve.engine.estimators.sandbox FILE FOLDER [CHECKPOINT]`.

Only then it imports the rest (`importer.py`): numpy starts threads when it is imported, and a process with threads
cannot leave its user namespace any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def give_up_network() -> bool:
    """Move this process into a network namespace without any device; False where the container does not permit it."""
    uid, gid = os.getuid(), os.getgid()
    try:
        if ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
            return False
    except (OSError, AttributeError):  # not Linux
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return True


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    give_up_network()
    from serve.engine.estimators import importer

    importer.main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
