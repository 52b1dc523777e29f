"""The program that Ray runs in HAProxy's place (`tabpfn-serve-haproxy`): it removes two listeners and becomes HAProxy.

Ray gives the arguments, `-db -f CONFIG ...`, so two variables, `PROGRAM` and `ADDRESS` below, say the rest. The changes
to the configuration and their reasons are in `haproxy.py`. The program is installed with the package and not written at
the start, because the temporary folder of a container may hold no programs.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

PROGRAM = "TABPFN_HAPROXY_PROGRAM"
"""HAProxy's own path."""
ADDRESS = "TABPFN_HAPROXY_ADDRESS"
"""The address of the public listener, `HOST:PORT`."""

_PR_SET_PDEATHSIG = 1


def with_one_listener(config: str, address: str) -> str:
    """The configuration without the listeners of metrics and statistics, its public listener at `address`."""
    config = re.sub(r"^frontend prometheus$.*?(?=^frontend http_frontend$)", "", config, flags=re.M | re.S)
    config = re.sub(r"^listen stats$.*", "", config, flags=re.M | re.S)
    front = re.compile(r"(^frontend http_frontend$.*?^    bind )[^\n]*", re.M | re.S)
    return front.sub(lambda found: found[1] + address, config, count=1)


def main() -> None:
    """Change the file after `-f` and become HAProxy."""
    program, arguments = os.environ[PROGRAM], sys.argv[1:]
    config = Path(arguments[arguments.index("-f") + 1])
    config.write_text(with_one_listener(config.read_text(), os.environ[ADDRESS]))
    # Ray forgets HAProxy when the launcher is killed (SIGKILL), and the port must not stay taken.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execv(program, [program, *arguments])
