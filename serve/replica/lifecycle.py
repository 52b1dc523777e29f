"""The life of a replica: start, serve, stop. The order of a stop is written here and nowhere else.

Theory of operation
-------------------
A lifecycle owns what is served (a predictor, or, in the launcher of Ray, all replicas) and the listeners through which
requests come in: uvicorn servers, HAProxy. The start opens the listeners only when every model has passed its checks.
The stop takes these steps, in this order:

1. Lame duck, for `lame_duck_s`: readiness fails, and every request is still served. This step is for load balancers
   that learn of a stop only from the readiness check. It is skipped where `lame_duck_s` is 0.
2. Close the listeners: no new connection is accepted, idle connections are closed, each busy one after its answer.
3. Requests that are inside are served as before, for at most `GRACE_S`. Nearly always all are answered by then. At its
   end uvicorn's listener refuses those that have not arrived in full, so that no stalled upload holds the stop.
4. Drain: a request that arrives in full only now gets 503. Every admitted request is answered, within the drain
   timeout of what is served.
5. Close what is served: the requests that the drain left get 503 too, and the engine ends.
6. Wait until the last answers have left, at most `last_bytes_s`. Connections that remain are cut.

What is always true:
- a stop happens once: a second call waits for the first;
- `hurry` skips every wait of the stop, and no step: each admitted request still has its outcome;
- a stop during the start gives up the start, and no listener is opened any more;
- if the engine is lost, or a listener ends by itself, the replica stops: to refuse connections is clearer to callers
  and supervisors than to be never ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol

from serve.core.errors import DeviceLost, StartupError
from serve.replica.predictor import Predictor
from serve.telemetry.cloudwatch import publishing
from serve.telemetry.emf import line_writer

GRACE_S = 1.0
"""How long requests that are inside may still be admitted after the listeners closed."""

LAST_BYTES_S = 5.0
"""How long callers that read slowly have after the drain, where nothing else is said."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_WATCH_INTERVAL_S = 0.1

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """One way in for requests."""

    @property
    def is_open(self) -> bool:
        """Connections are accepted. False after `close`, and where the listener has ended by itself."""

    async def open(self) -> None:
        """Accept connections. Raises StartupError."""

    async def close(self) -> None:
        """Accept no more connections; the requests inside go on. May be called again, and without `open`."""

    async def wait_empty(self) -> None:
        """After `close`: wait until the last answer has left. The wait may be cancelled, and begun again."""

    async def abort(self) -> None:
        """After `close`: cut the connections that are left."""


class Served(Protocol):
    """What answers the requests: `replica.predictor.Predictor`, or every replica of a Ray deployment."""

    @property
    def is_lost(self) -> bool:
        """No request will ever be answered again."""

    async def start(self) -> None:
        """Return when every model is ready. Raises StartupError."""

    async def enter_lame_duck(self) -> None:
        """Be not ready, and serve."""

    async def drain(self) -> None:
        """Admit no more requests and wait, for a bounded time, for the admitted ones."""

    async def close(self) -> None:
        """Give each request that is left its outcome, and end the engine. May be called again."""


class StoppedBeforeReady(Exception):
    """A stop signal came before the start was done. The start may still hold a thread that cannot be interrupted."""


class ReplicaLifecycle:
    """The life of what is served and of its listeners, on one event loop. See the head of the file."""

    def __init__(
        self,
        served: Served,
        listeners: Sequence[Listener] = (),
        *,
        lame_duck_s: float = 0.0,
        last_bytes_s: float = LAST_BYTES_S,
        beside: AbstractAsyncContextManager[None] | None = None,
    ) -> None:
        """`beside` is entered once `served` has started, and left when the last answers have left."""
        self._served = served
        self._listeners = listeners
        self._lame_duck_s = lame_duck_s
        self._last_bytes_s = last_bytes_s
        self._beside = beside
        self._exits = AsyncExitStack()
        self._stop_asked = asyncio.Event()
        self._hurried = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.fault: str | None = None
        """Why the replica stopped by itself."""

    @property
    def is_open(self) -> bool:
        """Every listener accepts connections."""
        return all(listener.is_open for listener in self._listeners)

    @property
    def is_stopping(self) -> bool:
        """A stop was asked for."""
        return self._stop_asked.is_set()

    async def start(self) -> None:
        """Start what is served, then open each listener. A second call waits for the first.

        Raises StartupError; everything that was started is closed again then.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="replica-start")
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        try:
            await self._served.start()
            if self._beside is not None:
                await self._exits.enter_async_context(self._beside)
            for listener in self._listeners:
                await listener.open()
        except Exception:
            self.hurry()
            await self._take_stop_steps()
            raise
        self._watching = asyncio.create_task(self._watch(), name="replica-watch")

    async def _watch(self) -> None:
        while self.fault is None:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            if self._served.is_lost:
                self.fault = "the engine is gone and no request can be answered any more; the log says why"
            elif not self.is_open:
                self.fault = "the server does not listen any more; the log says why"
        self._begin_stop()

    def hurry(self) -> None:
        """Skip what is left to wait for, also in a stop that has not begun."""
        self._hurried.set()

    async def stop(self) -> None:
        """Take the steps of the stop. A second call waits for the first."""
        await asyncio.shield(self._begin_stop())

    def _begin_stop(self) -> asyncio.Task[None]:
        self._stop_asked.set()
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="replica-stop")
        return self._stopping

    async def _stop(self) -> None:
        if self._watching is not None and self.fault is None:
            self._watching.cancel()
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
            self.hurry()  # no request was let in
        await self._take_stop_steps()

    async def _take_stop_steps(self) -> None:
        if self._lame_duck_s > 0 and self.fault is None:
            await self._served.enter_lame_duck()
            await self._unless_hurried(asyncio.sleep(self._lame_duck_s))
        for listener in self._listeners:
            await listener.close()
        await self._unless_hurried(self._wait_empty(GRACE_S))
        try:
            await self._unless_hurried(self._served.drain())
        finally:
            await self._served.close()
            await self._unless_hurried(self._wait_empty(self._last_bytes_s))
            for listener in self._listeners:
                await listener.abort()
            await self._exits.aclose()

    async def _wait_empty(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(listener.wait_empty() for listener in self._listeners))

    async def _unless_hurried(self, step: Coroutine[Any, Any, None]) -> None:
        """Await the step to its end, or until `hurry`, which cancels it; not at all after `hurry`."""
        if self._hurried.is_set():
            step.close()
            return
        working, hurried = asyncio.create_task(step), asyncio.create_task(self._hurried.wait())
        await asyncio.wait((working, hurried), return_when=asyncio.FIRST_COMPLETED)
        for task in (working, hurried):
            task.cancel()
        await asyncio.wait((working, hurried))
        if not working.cancelled():
            working.result()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start, serve until SIGTERM or SIGINT, and stop. A second SIGINT hurries. Needs the main thread.

        `on_ready` is called on a thread of its own when the replica serves.

        Raises:
            StartupError: the replica never served.
            StoppedBeforeReady: a signal came first.
            DeviceLost: it served until the engine was lost or a listener ended.
        """
        with self._stop_signals():
            await self._start_unless_stopped()
            try:
                await asyncio.to_thread(on_ready)
                await self._stop_asked.wait()
            finally:
                await self.stop()
        if self.fault is not None:
            raise DeviceLost(self.fault)

    async def _start_unless_stopped(self) -> None:
        starting, asked = asyncio.create_task(self.start()), asyncio.create_task(self._stop_asked.wait())
        await asyncio.wait((starting, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not starting.done():
            starting.cancel()
            raise StoppedBeforeReady
        await starting

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        previous = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
        for signum in STOP_SIGNALS:
            loop.add_signal_handler(signum, self._signalled, signum)
        try:
            yield
        finally:
            for signum, handler in previous.items():
                loop.remove_signal_handler(signum)
                signal.signal(signum, handler)

    def _signalled(self, signum: signal.Signals) -> None:
        if signum == signal.SIGINT and self._stop_asked.is_set():
            self.hurry()
        self._stop_asked.set()


def lifecycle_of(
    predictor: Predictor, listeners: Sequence[Listener] = (), *, lame_duck_s: float = 0.0
) -> ReplicaLifecycle:
    """The life of one predictor, which also writes the metrics of CloudWatch where the settings say so.

    Raises StartupError where the file of those metrics cannot be opened.
    """
    settings = predictor.settings.metrics
    try:
        write = None if settings.emf_namespace is None else line_writer(settings.emf_path)
    except OSError as error:
        raise StartupError(f"metrics.emf_path: cannot write to {settings.emf_path}: {error.strerror}") from None
    beside = publishing(
        predictor.telemetry.cloudwatch,
        write,
        namespace=settings.emf_namespace,
        service=settings.emf_service,
        interval_s=settings.emf_interval_s,
    )
    return ReplicaLifecycle(predictor, listeners, lame_duck_s=lame_duck_s, beside=beside)
