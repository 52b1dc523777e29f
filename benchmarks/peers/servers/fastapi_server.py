"""FastAPI and `predict_proba`, the way it is usually written: no batching.

A plain `def` endpoint, which FastAPI runs in its thread pool, so that the server answers others meanwhile; a lock,
since the library's predict is not thread-safe. One worker process, as every system here has one model process. uvicorn
with uvloop and httptools, no access log.
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
