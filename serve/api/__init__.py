"""The HTTP doors. `create_app` makes the ASGI app of one replica."""

from serve.api.app import create_app

__all__ = ["create_app"]
