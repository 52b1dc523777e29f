"""Any sequence of arrivals, cancellations, deadlines, faults and a drain: everyone has one outcome, and it is his own.

Faults 1, 5 and 7 of the table in notes/style.md, section 4.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from batcher_harness import TIMEOUT_S, A, Ask, B, Harness, HeldDevice, VirtualClock, serving, turns
from hypothesis import given, settings

from serve.core import Batch, Priority
from serve.core.errors import DeadlineExceeded, DeadlineTooShort, Draining, EngineError, OutOfMemory, Overloaded
from serve.engine.fake import FakeEngine

MAX_ROWS = 6
LONG_S, SHORT_S = 1e6, 2.0

Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["submit", "submit bulk", "submit in a hurry"]), st.integers(1, 4)),
        st.tuples(st.sampled_from(["submit", "submit bulk"]), st.just(15)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("let_through"), st.integers(1, 2)),
        st.tuples(st.just("finish"), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 3)),
        st.tuples(st.just("turn"), st.integers(1, 4)),
        st.tuples(st.just("drain"), st.just(0)),
    ),
    max_size=40,
)


@dataclass
class Device:
    """What the engine does with each batch: pass at the gate, then answer or fail."""

    gate: HeldDevice
    fault_every: int
    out_of_memory_every: int
    num_batches: int = 0
    sizes: list[int] = field(default_factory=list)

    def __call__(self, batch: Batch) -> None:
        self.gate(batch)
        self.num_batches += 1
        self.sizes.append(len(batch.rows))
        if self.fault_every and self.num_batches % self.fault_every == 0:
            raise RuntimeError("a fault that is planned")
        if self.out_of_memory_every and self.num_batches % self.out_of_memory_every == 0:
            raise OutOfMemory("a lack that is planned")


@settings(max_examples=120, deadline=None)
@given(
    steps=STEPS,
    delay_ms=st.sampled_from([0, 1]),
    fault_every=st.sampled_from([0, 2, 3]),
    out_of_memory_every=st.sampled_from([0, 2, 5]),
    max_in_flight=st.integers(1, 2),
    is_measured=st.booleans(),
)
def test_everyone_has_one_outcome(steps: list[Step], **options: Any) -> None:
    asyncio.run(_everyone_has_one_outcome(steps, **options))


async def _everyone_has_one_outcome(
    steps: list[Step],
    delay_ms: float,
    fault_every: int,
    out_of_memory_every: int,
    max_in_flight: int,
    is_measured: bool,
) -> None:
    clock = VirtualClock()
    device = Device(HeldDevice(), fault_every, out_of_memory_every)
    engine = FakeEngine(gate=device, max_in_flight=max_in_flight)
    async with serving(engine, clock, max_batch_rows=MAX_ROWS, max_queue_delay_ms=delay_ms) as harness:
        if is_measured:
            for context in (A, B):
                harness.batcher.add_context(context, {1: 0.5, 3: 0.5, MAX_ROWS: 1.0}, max_backlog_s=LONG_S)
        run = Run(harness, clock, device.gate)
        for verb, number in steps:
            await run.step(verb, number)
        await turns()
        clock.now += 1.0  # the delay is over, for the last who came, too
        device.gate.open()
        await run.end(may_fail=bool(fault_every or out_of_memory_every))
        await harness.batcher.run_on_device(lambda: None)  # a batch whose callers have all left may still be there
        await turns()
        assert harness.value("queued_requests") == harness.value("in_flight_requests") == 0
    assert all(size <= MAX_ROWS for size in device.sizes)


class Run:
    """The callers, and what may become of each."""

    def __init__(self, harness: Harness, clock: VirtualClock, gate: HeldDevice) -> None:
        self.harness, self.clock, self.gate = harness, clock, gate
        self.asks: list[Ask] = []
        self.cancelled: set[Ask] = set()
        self.hurried: set[Ask] = set()
        self.drains: list[asyncio.Task[None]] = []

    async def step(self, verb: str, number: int) -> None:
        if verb.startswith("submit"):
            self._submit(verb, number)
        elif verb == "cancel" and number < len(self.asks):
            self.asks[number].task.cancel()
            self.cancelled.add(self.asks[number])
        elif verb == "let_through":
            self.gate.let_through(number)
        elif verb == "finish":
            self.gate.let_through(8)
            await self.harness.batcher.run_on_device(lambda: None)  # comes after the batch that is on the device
        elif verb == "wait":
            self.clock.now += number
        elif verb == "drain":
            self.drains.append(asyncio.create_task(self.harness.batcher.drain(TIMEOUT_S)))
        else:
            await turns(number)

    def _submit(self, verb: str, num_rows: int) -> None:
        hurried = verb == "submit in a hurry"
        ask = self.harness.request(
            num_rows,
            (A, B)[len(self.asks) % 2],
            priority=Priority.BULK if verb == "submit bulk" else Priority.INTERACTIVE,
            timeout_s=SHORT_S if hurried else LONG_S,
        )
        self.asks.append(ask)
        if hurried:
            self.hurried.add(ask)

    async def end(self, *, may_fail: bool) -> None:
        for ask in self.asks:
            await asyncio.wait([ask.task], timeout=TIMEOUT_S)
            assert ask.task.done(), "every request has an outcome"
            if ask.task.cancelled():
                assert ask in self.cancelled
                continue
            error = ask.task.exception()
            if isinstance(error, EngineError):
                assert may_fail
            elif isinstance(error, Draining):
                assert self.drains
            elif isinstance(error, (DeadlineExceeded, DeadlineTooShort, Overloaded)):
                assert ask in self.hurried
            else:
                await ask.answered()
        for drain in (*self.drains, asyncio.create_task(self.harness.batcher.drain(TIMEOUT_S))):
            await asyncio.wait_for(drain, TIMEOUT_S)
