"""Large requests leave the event loop free."""

import asyncio
import threading

import pytest

from serve.replica.large_requests import LargeRequestExecutor


async def test_small_work_is_done_on_the_loop() -> None:
    executor = LargeRequestExecutor()
    assert await executor.run(False, threading.get_ident) == threading.get_ident()
    executor.close()


async def test_the_loop_goes_on_beside_large_work() -> None:
    executor, began, go_on = LargeRequestExecutor(), threading.Event(), threading.Event()

    def work(number: int, *, unit: str) -> str:
        began.set()
        assert go_on.wait(20)
        return f"{number} {unit}"

    large = asyncio.create_task(executor.run(True, work, 7, unit="rows"))
    await asyncio.to_thread(began.wait)  # a loop that was kept would never come here
    go_on.set()
    assert await large == "7 rows"
    executor.close()


async def test_large_work_is_one_at_a_time_and_its_errors_come_through() -> None:
    executor = LargeRequestExecutor()
    threads = await asyncio.gather(*(executor.run(True, threading.get_ident) for _ in range(4)))
    assert len({*threads}) == 1
    with pytest.raises(ZeroDivisionError):
        await executor.run(True, lambda: 1 // 0)
    executor.close()


async def test_closing_lets_what_waits_go_on() -> None:
    executor, go_on = LargeRequestExecutor(), threading.Event()
    asks = [asyncio.create_task(executor.run(True, go_on.wait, 20)) for _ in range(2)]
    await asyncio.sleep(0)  # both are in the thread's queue
    executor.close()
    go_on.set()
    assert await asyncio.gather(*asks) == [True, True]
