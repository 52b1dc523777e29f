"""One replica without HTTP: finds the model, encodes, admits, batches and answers; starts, drains and closes.

What is always true:
- no request is answered before every model is fitted, warmed up and has passed its parity check (`start`);
- a request is encoded alone, so its own fault is found before its rows meet those of another caller;
- after `drain` began no request is admitted, and every admitted request gets its outcome.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial

import serve
from serve.batching import AdmittedRequest, Asked, Batcher, Outcome
from serve.batching.snapshot import Load
from serve.core import (
    Engine,
    FittedContext,
    Matrix,
    ModelDefinition,
    ModelReference,
    Prediction,
    PredictRequest,
    Priority,
    ServerState,
    row_buckets,
)
from serve.core.errors import Draining
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.checks.warmup import warm_up
from serve.replica import garbage
from serve.replica.interface import ModelTable, ServedModel, check_num_rows
from serve.replica.large_requests import LargeRequestExecutor
from serve.replica.status import DeviceStatus, ModelStatus, QueueStatus, Status
from serve.settings import ServerSettings
from serve.store import ModelStore
from serve.telemetry.event_loop import observe_lag
from serve.telemetry.nvml import Gpu, find_gpu
from serve.telemetry.telemetry import Telemetry

_log = logging.getLogger(__name__)

_MIN_FULL_BATCHES = 4
"""A default timeout lasts at least this many full batches: the batch on the device, the rows ahead, the request's own
rows, and a reserve."""

_SERVING = (ServerState.READY, ServerState.LAME_DUCK)


class Predictor:
    """Owns the engine, the batcher and the served models of one replica. Lives on one event loop."""

    def __init__(self, store: ModelStore, engine: Engine, settings: ServerSettings, telemetry: Telemetry) -> None:
        self.settings = settings
        self.telemetry = telemetry
        self.recorder = telemetry.recorder
        self.large_requests = LargeRequestExecutor()
        self._store = store
        self._engine = engine
        self._batcher = Batcher(engine, settings.batching, self.recorder)
        self._lag: asyncio.Task[None] | None = None
        self._models = ModelTable()
        self._state = ServerState.STARTING
        self._gpu: Gpu | None = None
        self._made_at = time.monotonic()

    @property
    def state(self) -> ServerState:
        """Where the replica is in its life."""
        return self._state

    @property
    def device(self) -> str:
        """The device of the models: `cpu` or `cuda:N`."""
        return self._engine.device

    @property
    def is_ready(self) -> bool:
        """Requests should be sent here: started, not stopping, the batching task alive and the device not hung."""
        return self._state is ServerState.READY and not self.failed

    @property
    def failed(self) -> bool:
        """No request is answered, the replica should be replaced: batcher dead, device lost or hung."""
        return self._batcher.failed or self._engine.lost

    @property
    def is_lost(self) -> bool:
        """`failed`, and for good: a batch that hangs may still end, a device that is lost does not return."""
        return self._batcher.died or self._engine.lost

    async def start(self) -> None:
        """Fit, warm up and check every model of the store; nothing where that is done.

        Raises:
            StartupError: a model cannot be served, so the replica must not become ready.
        """
        if self._state is not ServerState.STARTING:
            return
        await self._batcher.start()
        self._lag = asyncio.create_task(observe_lag(self.recorder.loop_lagged), name="event-loop-lag")
        for name in self._store.names():
            definition = await asyncio.to_thread(self._store.load, name)  # it may download; a stop is heard meanwhile
            _log.info("loading model %s version %s: fit, warm-up and checks", name, definition.version)
            fitted, seconds = await self._batcher.run_on_device(partial(self._prepare, definition))
            model = ServedModel(definition, fitted, self._timeout_s(definition, seconds))
            self._batcher.add_context(fitted, seconds, max_backlog_s=model.timeout_s)
            self._models.add(model)
            self.recorder.model_ready(definition, self._engine.device, fitted.backend)
        garbage.leave_alone()
        self._gpu = find_gpu(self._engine.device)
        if self._gpu is not None:
            self.recorder.watch_gpu(self._engine.device, self._gpu)
        self._enter(ServerState.READY)

    def _enter(self, state: ServerState) -> None:
        self._state = state
        self._models.is_complete = True
        self.recorder.state_changed(state)

    def _prepare(self, definition: ModelDefinition) -> tuple[FittedContext, dict[int, float]]:
        """On the device thread: the fitted and checked context, and the measured seconds of each row bucket."""
        fitted = self._engine.fit(definition)
        rows = canary_rows(fitted.encode_context())
        tolerance = self.settings.engine.allowed_difference
        buckets = row_buckets(self.settings.batching.max_batch_rows, self._engine.device)
        seconds = warm_up(self._engine, fitted, rows, buckets, tolerance)
        worst = check_parity(self._engine, fitted, rows[: max(seconds)], tolerance)
        _log.info("model %s: canary rows alone, batched and uncached agree within %.1e", definition.name, worst)
        _log.info("model %s version %s is ready on %s", definition.name, definition.version, self._engine.device)
        return fitted, seconds

    def _timeout_s(self, definition: ModelDefinition, seconds: Mapping[int, float]) -> float:
        """The manifest's default timeout, or the setting's, which a slow model gets stretched to some full batches."""
        if definition.default_timeout_ms is not None:
            return definition.default_timeout_ms / 1e3
        return max(self.settings.batching.default_timeout_ms / 1e3, _MIN_FULL_BATCHES * max(seconds.values()))

    def models(self) -> list[ServedModel]:
        """Every served model, by name. Raises NotReady before the start is done."""
        return self._models.all()

    def model(self, reference: ModelReference) -> ServedModel:
        """The served model that a request names. Raises NotReady before the start is done, UnknownModel."""
        return self._models.find(reference)

    def precheck(self, model: ServedModel, deadline: float, priority: Priority) -> None:
        """Return if a request of one row would be admitted now. Raises Draining, Overloaded, DeadlineTooShort."""
        self._batcher.precheck(model.name, model.fitted, deadline, priority)

    async def predict(self, request: PredictRequest) -> Prediction:
        """Answer the rows of one request, in their order.

        Raises InvalidInput, UnknownModel, TooLarge, NotReady, Overloaded, DeadlineTooShort, Draining, DeadlineExceeded,
        EngineError.
        """
        fitted = self._serving(request)
        rows = await self.large_requests.encode(fitted, request.table)
        return await self._batcher.submit(request, fitted, rows)

    def admit(
        self, request: PredictRequest, on_outcome: Callable[[Outcome], None], *, is_checked: bool = False
    ) -> AdmittedRequest:
        """See `interface.Replica`."""
        fitted = self._serving(request)
        return self._batcher.admit(request, fitted, fitted.encode(request.table), on_outcome, is_checked=is_checked)

    def admit_encoded(
        self, request: Asked, model: ServedModel, rows: Matrix, on_outcome: Callable[[Outcome], None]
    ) -> AdmittedRequest:
        """As `admit`, for rows that a front process has encoded, of any number that `max_request_rows` allows.

        Raises TooLarge, Draining, Overloaded, DeadlineTooShort, DeadlineExceeded.
        """
        self._check_open(len(rows))
        return self._batcher.admit(request, model.fitted, rows, on_outcome)

    @property
    def load(self) -> Load:
        """What decides whether a request is admitted, for copies of it."""
        return self._batcher.load

    def withdraw(self, admitted: AdmittedRequest) -> None:
        """The caller of `admit` has left. Nothing where the request has its outcome."""
        self._batcher.withdraw(admitted)

    def _serving(self, request: PredictRequest) -> FittedContext:
        """What answers the request. Raises UnknownModel, NotReady, Draining, TooLarge."""
        fitted = self.model(request.model).fitted
        self._check_open(request.table.num_rows)
        return fitted

    def _check_open(self, num_rows: int) -> None:
        if self._state not in _SERVING:
            raise Draining("this replica is shutting down; send the request again, another replica will take it")
        check_num_rows(num_rows, self.settings)

    def snapshot(self) -> Status:
        """State, models, queue, device and costs of now; also before the start is done, and after the end."""
        batcher = self._batcher
        queue = QueueStatus(
            batcher.num_queued_requests,
            {priority.value: batcher.num_queued_rows(priority) for priority in Priority},
            batcher.num_in_flight_requests,
            batcher.num_ongoing_requests,
            batcher.num_ongoing_rows,
        )
        device = DeviceStatus(
            self.device,
            batcher.is_hung,
            self._engine.lost,
            None if self._gpu is None else _known(self._gpu.memory_used_bytes()),
            None if self._gpu is None else _known(self._gpu.utilization_ratio()),
        )
        models = tuple(self._describe(model) for model in self._models.ready())
        uptime_s = time.monotonic() - self._made_at
        return Status(serve.__version__, self._state, self.is_ready, round(uptime_s, 3), models, queue, device)

    def _describe(self, model: ServedModel) -> ModelStatus:
        definition, cost = model.definition, self._batcher.cost_of(model.fitted)
        return ModelStatus(
            definition.name,
            definition.version,
            definition.checkpoint_name,
            model.fitted.backend,
            definition.context.num_rows,
            round(1e3 * model.timeout_s, 3),
            cost.row_budget,
            {rows: round(1e3 * seconds, 3) for rows, seconds in cost.by_rows().items()},
        )

    async def enter_lame_duck(self) -> None:
        """Be not ready from now on, and serve every request as before. Nothing happens unless the replica is ready."""
        if self._state is ServerState.READY:
            self._enter(ServerState.LAME_DUCK)

    async def drain(self) -> None:
        """Admit no more requests and wait for the admitted ones, at most `drain_timeout_s`. May be called again."""
        if self._state in (ServerState.STARTING, ServerState.READY, ServerState.LAME_DUCK):
            self._enter(ServerState.DRAINING)
        await self._batcher.drain(self.settings.api.drain_timeout_s)

    async def close(self) -> None:
        """Fail the requests that a drain left, stop the device thread and free the device."""
        if self._state is ServerState.CLOSED:
            return
        self._enter(ServerState.CLOSED)
        if self._lag is not None:
            self._lag.cancel()
        await self._batcher.close()
        self.large_requests.close()
        await asyncio.to_thread(self._engine.close)


def _known(reading: float) -> float | None:
    """None where the driver does not say."""
    return None if math.isnan(reading) else reading
