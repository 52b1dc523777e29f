"""HTTP: doors, the flow that they share, and the routes for operators. `create_app` makes the ASGI app of one replica.

A door is one protocol's face: its routes, its error format and its part of the OpenAPI document (`door.py`). Another
door is one folder beside `native/` and one entry in `app.DOORS`.

What is always true:
- a prediction never enters the router: `predictions.py` serves it as bare ASGI;
- each request for predictions is counted once, by `Predictions.count`;
- the HTTP and the gRPC status of an error come from the table in `statuses.py`.
"""

from serve.api.app import App, create_app

__all__ = ["App", "create_app"]
