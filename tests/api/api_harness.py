"""A real Predictor over FakeEngine, with a classifier `fraud` and a regressor `price`, behind the real app."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serve.api import create_app
from serve.core import Batch, Column, ColumnKind, Context, ModelDefinition, Task
from serve.core.errors import UnknownModel
from serve.replica.predictor import Predictor

COLUMNS = (
    Column("amount", ColumnKind.NUMBER, "of the purchase, in euro"),
    Column("age", ColumnKind.NUMBER),
)
EXAMPLE = {"amount": 129.95, "age": 41}
FRAUD = "/v1/models/fraud/predict"
PRICE = "/v1/models/price/predict"
RECORDS = [{"amount": 1.5, "age": 30}, {"age": 60, "amount": None}, {"amount": 1 / 3, "age": 0}]


def definition(name: str, task: Task) -> ModelDefinition:
    rows = range(16)
    target = [str(row % 2) for row in rows] if task is Task.CLASSIFICATION else [float(row) for row in rows]
    cells = {column.name: [float(row * (index + 1)) for row in rows] for index, column in enumerate(COLUMNS)}
    return ModelDefinition(
        name=name,
        version="3",
        context=Context(task, COLUMNS, cells, target),
        checkpoint_path="/nowhere",
        checkpoint_name="fake-1",
        licence="Apache-2.0",
        example=EXAMPLE,
        description=f"answers {name}",
    )


class TwoModels:
    """A model store without a disk."""

    def __init__(self) -> None:
        self._models = {
            "fraud": definition("fraud", Task.CLASSIFICATION),
            "price": definition("price", Task.REGRESSION),
        }

    def names(self) -> list[str]:
        return sorted(self._models)

    def load(self, name: str) -> ModelDefinition:
        if name not in self._models:
            raise UnknownModel(name)
        return self._models[name]


@dataclass
class Gate:
    """Holds batches on the device thread while shut, and remembers the rows of each."""

    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[list[float]]] = field(default_factory=list)
    error: Exception | None = None
    _open: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.open()

    def __call__(self, batch: Batch) -> None:
        self.batches.append(batch.rows.tolist())
        self.entered.release()
        assert self._open.wait(20), "a test left the gate shut"
        if self.error is not None:
            raise self.error

    def shut(self) -> None:
        """From now on; forgets what has passed (the warm-up)."""
        self._open.clear()
        self.batches.clear()
        while self.entered.acquire(blocking=False):
            pass

    def wait_for_batch(self) -> None:
        """Blocks: call it in a thread."""
        assert self.entered.acquire(timeout=20), "no batch came to the device"

    def open(self) -> None:
        self._open.set()


MakePredictor = Callable[..., Predictor]
Serving = Callable[[Predictor], AbstractAsyncContextManager[httpx.AsyncClient]]


def client_of(predictor: Predictor) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(predictor)), base_url="http://test")


def outcomes(metrics_text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["model"], sample.labels["outcome"]): sample.value
        for family in text_string_to_metric_families(metrics_text)
        for sample in family.samples
        if sample.name == "tabpfn_requests_total"
    }


async def until_queued(client: httpx.AsyncClient, number: int) -> None:
    """Ask the metrics until so many requests wait, with a turn of the event loop between."""
    line = f"tabpfn_queued_requests {float(number)}"
    async with asyncio.timeout(20):
        while line not in (await client.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0)
