"""Large requests leave the event loop free."""

import asyncio
import threading

import pytest
from predictor_harness import RECORD, make, predict

from serve.core import Matrix, QueryTable
from serve.engine.fake import FakeContext
from serve.replica.large_requests import SMALL_ROWS, LargeRequestExecutor


@pytest.mark.parametrize(("num_rows", "is_on_the_loop"), [(SMALL_ROWS, True), (SMALL_ROWS + 1, False)])
async def test_only_large_requests_are_encoded_on_the_thread(
    num_rows: int, is_on_the_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, threads = FakeContext.encode, []

    def seen(context: FakeContext, table: QueryTable) -> Matrix:
        threads.append(threading.get_ident())
        return encode(context, table)

    monkeypatch.setattr(FakeContext, "encode", seen)
    predictor = make()
    await predictor.start()
    threads.clear()
    await predict(predictor, [RECORD] * num_rows)
    await predictor.close()
    assert [thread == threading.get_ident() for thread in threads] == [is_on_the_loop]


async def test_the_loop_goes_on_beside_large_work() -> None:
    executor, began, go_on = LargeRequestExecutor(), threading.Event(), threading.Event()

    def work(number: int, *, unit: str) -> str:
        began.set()
        assert go_on.wait(20)
        return f"{number} {unit}"

    large = asyncio.create_task(executor.run(work, 7, unit="rows"))
    await asyncio.to_thread(began.wait)  # a loop that was kept would never come here
    go_on.set()
    assert await large == "7 rows"
    executor.close()


async def test_large_work_is_one_at_a_time_and_its_errors_come_through() -> None:
    executor = LargeRequestExecutor()
    threads = await asyncio.gather(*(executor.run(threading.get_ident) for _ in range(4)))
    assert len({*threads}) == 1
    with pytest.raises(ZeroDivisionError):
        await executor.run(lambda: 1 // 0)
    executor.close()


async def test_closing_lets_what_waits_go_on() -> None:
    executor, go_on = LargeRequestExecutor(), threading.Event()
    asks = [asyncio.create_task(executor.run(go_on.wait, 20)) for _ in range(2)]
    await asyncio.sleep(0)  # both are in the thread's queue
    executor.close()
    go_on.set()
    assert await asyncio.gather(*asks) == [True, True]
