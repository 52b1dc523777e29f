"""The program that Ray runs in HAProxy's place (`tabpfn-serve-haproxy`): it changes the configuration, becomes HAProxy.

Ray gives the arguments, `-db -f CONFIG ...`, so three variables, `PROGRAM`, `ADDRESS` and `HEADER_TIMEOUT_S` below, say
the rest. The changes to the configuration and their reasons are in `haproxy.py`. The program is installed with the
package and not written at the start, because the temporary folder of a container may hold no programs.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

PROGRAM = "TABPFN_HAPROXY_PROGRAM"
"""HAProxy's own path."""
ADDRESS = "TABPFN_HAPROXY_ADDRESS"
"""The address of the public listener, `HOST:PORT`."""
HEADER_TIMEOUT_S = "TABPFN_HAPROXY_HEADER_TIMEOUT_S"
"""Whole seconds in which a caller's headers must arrive."""

_PR_SET_PDEATHSIG = 1


_INVALID_ID = "x-request-id must be 1 to 128 printable ASCII characters"
_REFUSED_ID = "%[var(txn.tabpfn_request_id)]"


def with_one_listener(config: str, address: str, header_timeout_s: int) -> str:
    """The configuration without the listeners of metrics and statistics, its public listener at `address`, guarded."""
    config = re.sub(r"^frontend prometheus$.*?(?=^frontend http_frontend$)", "", config, flags=re.M | re.S)
    config = re.sub(r"^listen stats$.*", "", config, flags=re.M | re.S)
    front = re.compile(r"(^frontend http_frontend$.*?^    bind )[^\n]*", re.M | re.S)
    guard = "".join(f"\n    {line}" for line in _guard(header_timeout_s))
    return front.sub(lambda found: found[1] + address + guard, config, count=1)


def _guard(header_timeout_s: int) -> list[str]:
    """What the public listener needs against callers that nobody trusts."""
    # As `api/native/problems.py` has it, whose imports take longer than HAProxy's start.
    answer = json.dumps(
        {
            "type": "about:blank",
            "title": "Bad Request",
            "status": 400,
            "detail": _INVALID_ID,
            "code": "invalid_header",
            "request_id": _REFUSED_ID,
        }
    )
    return [
        # No page for a connection on which nothing has arrived: it would be the answer to its next request.
        "option http-ignore-probes",
        f"timeout http-request {header_timeout_s}s",
        # Ray's server behind this listener fails on an id that is no text.
        "acl request_id_given req.fhdr(x-request-id) -m found",
        "acl request_id_valid req.fhdr(x-request-id,1) -m reg '^[ -~]{1,128}$'",
        "http-request set-var(txn.tabpfn_request_id) uuid() if request_id_given !request_id_valid",
        f"http-request return status 400 content-type application/problem+json lf-string '{answer}' "
        f"hdr x-request-id {_REFUSED_ID} if request_id_given !request_id_valid",
    ]


def main() -> None:
    """Change the file after `-f` and become HAProxy."""
    program, arguments = os.environ[PROGRAM], sys.argv[1:]
    config = Path(arguments[arguments.index("-f") + 1])
    timeout_s = int(os.environ[HEADER_TIMEOUT_S])
    config.write_text(with_one_listener(config.read_text(), os.environ[ADDRESS], timeout_s))
    # Ray forgets HAProxy when the launcher is killed (SIGKILL), and the port must not stay taken.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execv(program, [program, *arguments])
