"""What a replica says of itself."""

import asyncio
import threading

import msgspec
from predictor_harness import RECORD, make, predict

from serve.core import Batch, ServerState
from serve.core.errors import OutOfMemory
from serve.engine.fake import FakeEngine


async def test_before_the_start_there_is_no_model() -> None:
    predictor = make()
    status = predictor.snapshot()
    assert (status.state, status.is_ready, status.models) == (ServerState.STARTING, False, ())
    assert (status.device.name, status.device.is_lost, status.device.gpu_memory_used_bytes) == ("cpu", False, None)
    await predictor.close()
    assert predictor.snapshot().state is ServerState.CLOSED


async def test_it_tells_queue_batch_and_costs() -> None:
    entered, passes = threading.Event(), threading.Event()
    passes.set()

    def hold(_: Batch) -> None:
        entered.set()
        assert passes.wait(20)

    predictor = make(FakeEngine(gate=hold))
    await predictor.start()
    passes.clear()
    entered.clear()
    first = asyncio.create_task(predict(predictor, [RECORD]))
    await asyncio.to_thread(entered.wait, 20)
    others = [asyncio.create_task(predict(predictor, [RECORD] * 2, priority="bulk")) for _ in range(3)]
    await asyncio.sleep(0)  # one turn of the loop: they are queued
    status = predictor.snapshot()
    assert status.is_ready
    assert (status.queue.num_in_flight_requests, status.queue.num_queued_requests) == (1, 3)
    assert status.queue.num_queued_rows == {"interactive": 0, "bulk": 6}
    assert (status.queue.num_ongoing_requests, status.queue.num_ongoing_rows) == (4, 7)
    (model,) = status.models
    assert (model.name, model.version, model.backend, model.num_context_rows) == ("fraud", "1", "compiled", 16)
    assert list(model.batch_ms) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(milliseconds >= 0 for milliseconds in model.batch_ms.values())
    assert msgspec.json.decode(msgspec.json.encode(status))["models"][0]["max_batch_rows"] == 8
    passes.set()
    await asyncio.gather(first, *others)
    await predictor.close()


async def test_it_tells_that_the_first_runs_could_not_be_recorded() -> None:
    def fail_to_record(batch: Batch) -> None:
        object.__setattr__(batch.context, "backend", "compiled, not recorded")

    predictor = make(FakeEngine(gate=fail_to_record))
    await predictor.start()
    (model,) = predictor.snapshot().models
    assert model.backend == "compiled, not recorded"
    assert b'tabpfn_model_info{backend="compiled, not recorded",' in predictor.telemetry.prometheus.render()
    await predictor.close()


async def test_it_tells_that_the_memory_holds_small_batches_alone() -> None:
    def run_out(batch: Batch) -> None:
        if len(batch.rows) > 4:
            raise OutOfMemory("no memory for so many rows")

    predictor = make(FakeEngine(gate=run_out))
    await predictor.start()
    assert predictor.is_ready
    (model,) = predictor.snapshot().models
    assert (model.max_batch_rows, list(model.batch_ms)) == (4, [1, 2, 3, 4])
    assert len((await predict(predictor, [RECORD] * 9)).outputs) == 9
    await predictor.close()
