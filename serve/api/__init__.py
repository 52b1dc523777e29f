"""The HTTP doors. `create_app` makes the ASGI app of one replica."""

from serve.api.app import App, create_app

__all__ = ["App", "create_app"]
