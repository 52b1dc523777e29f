"""A blocked event loop is observed."""

import asyncio
import time

from serve.telemetry.event_loop import observe_lag


async def test_a_loop_that_was_kept_is_observed() -> None:
    lags: list[float] = []
    seen = asyncio.Event()

    def report(seconds: float) -> None:
        lags.append(seconds)
        seen.set()

    task = asyncio.create_task(observe_lag(report))
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - the fault that is to be seen
    await seen.wait()
    task.cancel()
    assert lags[0] > 0.2
