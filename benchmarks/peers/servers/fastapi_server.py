"""FastAPI and `predict_proba`, the way it is usually written: without batching.

The endpoint is a plain `def`, which FastAPI runs in its thread pool, so that the server reads other requests meanwhile.
A lock guards tabpfn's predict, which is not thread-safe. There is one worker process, as every system here has one
model process. uvicorn runs with uvloop and httptools and without access log.
"""

import threading
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.models import Predict, load
from benchmarks.peers.servers.options import read_options


class Query(BaseModel):
    """The request's body."""

    records: list[dict[str, Any]]


class Answer(BaseModel):
    """The answer's body."""

    probabilities: list[list[float]]


def create_app(predict: Predict) -> FastAPI:
    """The application around one model."""
    app = FastAPI()
    lock = threading.Lock()

    @app.post("/predict")
    def answer(query: Query) -> Answer:
        with lock:
            return Answer(probabilities=predict(query.records))

    return app


if __name__ == "__main__":
    options = read_options()
    app = create_app(load(options.engine, options.threads))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)
