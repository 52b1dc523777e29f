"""Bound sockets, without a listener yet: the public port of a server, or a check that a port is free."""

from __future__ import annotations

import resource
import socket

from serve.core.errors import StartupError

_INFINITE = 2**31


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bind a numeric or resolvable address of IPv4 or IPv6; port 0 takes a free one.

    `shared` lets another process of the same user bind the port too, so that the next replica listens before the old
    one leaves.

    Raises:
        StartupError: names the address and the reason.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        raise StartupError(f"cannot listen on {host} port {port}: {reason}") from None
    return sock


def permit_open_files() -> int:
    """Raise this process's limit of open files as far as the system permits, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else _INFINITE
