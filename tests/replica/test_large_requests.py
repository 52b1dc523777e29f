"""Large requests leave the loop to the others, and a loop that is kept is seen."""

import asyncio
import threading
import time

import pytest

from serve.replica.large_requests import LargeRequestExecutor
from serve.telemetry.event_loop import observe_lag


async def test_small_work_is_done_on_the_loop() -> None:
    aside = LargeRequestExecutor()
    assert await aside.run(False, threading.get_ident) == threading.get_ident()
    aside.close()


async def test_the_loop_goes_on_beside_large_work() -> None:
    aside, began, go_on = LargeRequestExecutor(), threading.Event(), threading.Event()

    def work(number: int, *, unit: str) -> str:
        began.set()
        assert go_on.wait(20)
        return f"{number} {unit}"

    large = asyncio.create_task(aside.run(True, work, 7, unit="rows"))
    await asyncio.to_thread(began.wait)  # a loop that was kept would never come here
    go_on.set()
    assert await large == "7 rows"
    aside.close()


async def test_large_work_is_one_at_a_time_and_its_errors_come_through() -> None:
    aside = LargeRequestExecutor()
    threads = await asyncio.gather(*(aside.run(True, threading.get_ident) for _ in range(4)))
    assert len({*threads}) == 1
    with pytest.raises(ZeroDivisionError):
        await aside.run(True, lambda: 1 // 0)
    aside.close()


async def test_closing_lets_what_waits_go_on() -> None:
    aside, go_on = LargeRequestExecutor(), threading.Event()
    asks = [asyncio.create_task(aside.run(True, go_on.wait, 20)) for _ in range(2)]
    await asyncio.sleep(0)  # both are in the thread's queue
    aside.close()
    go_on.set()
    assert await asyncio.gather(*asks) == [True, True]


async def test_a_loop_that_was_kept_is_observed() -> None:
    lags: list[float] = []
    seen = asyncio.Event()

    class Lag:
        def observe(self, amount: float) -> None:
            lags.append(amount)
            seen.set()

    task = asyncio.create_task(observe_lag(Lag()))
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - the fault that is to be seen
    await seen.wait()
    task.cancel()
    assert lags[0] > 0.2
