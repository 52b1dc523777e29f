"""A bound socket on which nobody listens yet: the public door's, or a look whether a port is free."""

from __future__ import annotations

import socket

from serve.core.errors import StartupError


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bind a numeric or resolvable address of IPv4 or IPv6; port 0 takes a free one.

    `shared` lets another process of ours have it too, so that a replica that takes over is there before the old one
    leaves. Raises StartupError naming the address.
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
