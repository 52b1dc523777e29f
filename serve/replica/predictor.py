"""One replica without its HTTP: find the model, encode, admit, batch, answer; start, drain, close.

What is always true:
- nothing is answered before every model is fitted, warmed up and has passed its parity check (`start`);
- a request is encoded alone, so its own fault is found before it can meet another caller's rows;
- after `drain` began nothing new is admitted, and everything admitted gets its outcome.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve.batching import Batcher
from serve.core import Engine, FittedContext, Matrix, ModelDefinition, Prediction, Priority, ServerState
from serve.core.errors import Draining, InvalidInput, NotReady, TooLarge, UnknownModel
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.checks.warmup import row_buckets, warm_up
from serve.replica.large_requests import SMALL_ROWS, LargeRequestExecutor
from serve.settings import ServerSettings
from serve.store import ModelStore
from serve.telemetry.event_loop import observe_lag
from serve.telemetry.nvml import observe_gpu
from serve.telemetry.prometheus import Metrics

_log = logging.getLogger(__name__)

_FEWEST_FULL_BATCHES = 4
"""A default timeout is never shorter: the batch on the device, the rows ahead, one's own, and some more."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is ready to answer."""

    definition: ModelDefinition
    fitted: FittedContext
    timeout_s: float
    """How long a request has that does not say so itself."""


class Predictor:
    """Owns the engine, the batcher and the served models of one replica. Lives on one event loop."""

    def __init__(self, store: ModelStore, engine: Engine, settings: ServerSettings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._store = store
        self._engine = engine
        self._batcher = Batcher(engine, settings.batching, metrics)
        self.large_requests = LargeRequestExecutor()
        self._lag: asyncio.Task[None] | None = None
        self._models: dict[str, ServedModel] = {}
        self._state = ServerState.STARTING

    @property
    def state(self) -> ServerState:
        return self._state

    @property
    def device(self) -> str:
        """Where the models run."""
        return self._engine.device

    @property
    def is_ready(self) -> bool:
        """Requests are answered: started, not draining, the batching task alive and the device not hung."""
        return self._state is ServerState.READY and not self.failed

    @property
    def failed(self) -> bool:
        """Nothing is answered any more, the replica should be replaced: batcher dead, device lost or hanging."""
        return self._batcher.failed or self._engine.lost

    @property
    def is_lost(self) -> bool:
        """`failed` without a way back: a batch that hangs may still end, a device that is lost does not return."""
        return self._batcher.died or self._engine.lost

    async def start(self) -> None:
        """Fit, warm up and check every model of the store. Raises StartupError; the replica must then not serve."""
        await self._batcher.start()
        self._lag = asyncio.create_task(observe_lag(self.metrics.event_loop_lag_seconds), name="event-loop-lag")
        for name in self._store.names():
            definition = await asyncio.to_thread(self._store.load, name)  # it may download; a stop is heard meanwhile
            fitted, seconds = await self._batcher.run_on_device(partial(self._prepare, definition))
            model = ServedModel(definition, fitted, self._timeout_s(definition, seconds))
            self._batcher.add_context(fitted, seconds, model.timeout_s)
            self._models[name] = model
            self.metrics.model_info.labels(
                name, definition.version, definition.checkpoint_name, self._engine.device
            ).set(1)
        # What is here now stays as long as the replica, and walking through it takes the garbage collector as long as
        # many batches (130 ms, measured). It is told to leave all that alone.
        gc.collect()
        gc.freeze()
        observe_gpu(self.metrics, self._engine.device)
        self._state = ServerState.READY
        self.metrics.ready.set(1)

    def _prepare(self, definition: ModelDefinition) -> tuple[FittedContext, dict[int, float]]:
        """On the device thread: the fitted and checked context, and the measured seconds of each row bucket."""
        fitted = self._engine.fit(definition)
        rows = canary_rows(fitted.encode_context())
        tolerance = self.settings.engine.parity_tolerance
        buckets = row_buckets(self.settings.batching.max_batch_rows)
        seconds = warm_up(self._engine, fitted, rows, buckets, tolerance)
        worst = check_parity(self._engine, fitted, rows, tolerance)
        _log.info("model %s: canary rows alone, batched and uncached agree within %.1e", definition.name, worst)
        _log.info("model %s version %s is ready on %s", definition.name, definition.version, self._engine.device)
        return fitted, seconds

    def _timeout_s(self, definition: ModelDefinition, seconds: Mapping[int, float]) -> float:
        """The manifest's word, or the setting's, stretched for a model so slow that it would be answered by nobody."""
        if definition.default_timeout_ms is not None:
            return definition.default_timeout_ms / 1e3
        return max(self.settings.batching.default_timeout_ms / 1e3, _FEWEST_FULL_BATCHES * max(seconds.values()))

    def models(self) -> list[ServedModel]:
        """Every served model, by name. Raises NotReady before the start is done."""
        self._require_started()
        return [self._models[name] for name in sorted(self._models)]

    def model(self, name: str) -> ServedModel:
        """Raises NotReady, UnknownModel."""
        self._require_started()
        try:
            return self._models[name]
        except KeyError:
            raise UnknownModel(f"no model named {name!r}; GET /v1/models lists what is served") from None

    def check_room(self, model: ServedModel, *, timeout_s: float | None, priority: Priority) -> None:
        """Raise Overloaded where not even one row would be admitted now, Draining where none is any more."""
        self._batcher.gate.check(model.fitted, model=model.definition.name, timeout_s=timeout_s, priority=priority)

    async def predict_records(
        self,
        model: ServedModel,
        records: Sequence[Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Prediction:
        """Answer one request of records, within `timeout_s` from now, or the model's own default.

        Raises InvalidInput, TooLarge, Overloaded, Draining, DeadlineExceeded, EngineError.
        """
        self._check_rows(len(records))
        began = time.monotonic()
        rows = await self.large_requests.run(len(records) > SMALL_ROWS, model.fitted.encode_records, records)
        return await self._predict(model, rows, _left(timeout_s, began), priority)

    async def predict_table(
        self,
        model: ServedModel,
        columns: Sequence[str],
        data: Sequence[Sequence[Any]],
        *,
        timeout_s: float | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Prediction:
        """The same for column names and rows of cells."""
        self._check_rows(len(data))
        began = time.monotonic()
        rows = await self.large_requests.run(len(data) > SMALL_ROWS, model.fitted.encode_table, columns, data)
        return await self._predict(model, rows, _left(timeout_s, began), priority)

    async def _predict(
        self, model: ServedModel, rows: Matrix, timeout_s: float | None, priority: Priority
    ) -> Prediction:
        return await self._batcher.submit(
            model.fitted, rows, model=model.definition.name, timeout_s=timeout_s, priority=priority
        )

    def _check_rows(self, num_rows: int) -> None:
        if self._state is not ServerState.READY:
            raise Draining("this replica is shutting down; send the request again, another one will take it")
        if num_rows == 0:
            raise InvalidInput("the request holds no row", code="no_rows")
        most = self.settings.batching.max_request_rows
        if num_rows > most:
            raise TooLarge(f"{num_rows} rows in one request; at most {most} are taken, send them in parts")

    def _require_started(self) -> None:
        if self._state is ServerState.STARTING:
            raise NotReady("models are being loaded and warmed up")

    async def drain(self) -> None:
        """Admit nothing new and wait for what was admitted, at most `drain_timeout_s`. May be called more than once."""
        if self._state in (ServerState.STARTING, ServerState.READY):
            self._state = ServerState.DRAINING
            self.metrics.ready.set(0)
        await self._batcher.drain(self.settings.api.drain_timeout_s)

    async def close(self) -> None:
        """Fail what a drain left, stop the device thread and free the device."""
        if self._state is ServerState.CLOSED:
            return
        self._state = ServerState.CLOSED
        self.metrics.ready.set(0)
        if self._lag is not None:
            self._lag.cancel()
        await self._batcher.close()
        self.large_requests.close()
        await asyncio.to_thread(self._engine.close)


def _left(timeout_s: float | None, began: float) -> float | None:
    return None if timeout_s is None else timeout_s - (time.monotonic() - began)
