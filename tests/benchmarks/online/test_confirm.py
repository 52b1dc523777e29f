"""A rate stands if all rounds together support the claim; otherwise it is lowered."""

from __future__ import annotations

from typing import Any

from benchmarks.online.confirm import confirm


def probe_with(late: int, asked: int = 1000, void: bool = False) -> dict[str, Any]:
    passed = late <= 2 and not void
    return {"late": late, "scheduled": asked, "void": void, "passed": passed, "latency": {"p99_ms": 50.0}}


async def test_rounds_are_pooled() -> None:
    late = iter([0, 5, 1, 0, 3])  # two rounds alone would fail, five thousand requests together may have 34 late

    async def measure(_: float) -> dict[str, Any]:
        return probe_with(next(late))

    rate, found = await confirm(measure, 100.0, rounds=5, backoff=1.05, tries=3)
    assert rate == 100.0
    assert [tried["confirmed"] for tried in found] == [True]
    assert (found[0]["late"], found[0]["scheduled"], found[0]["passed_rounds"]) == (9, 5000, 3)
    assert found[0]["confidence"] > 0.99


async def test_a_rate_that_cannot_stand_is_lowered_without_the_rest_of_its_rounds() -> None:
    asked: list[float] = []

    async def measure(rate: float) -> dict[str, Any]:
        asked.append(rate)
        return probe_with(500 if rate > 95 else 0)

    rate, found = await confirm(measure, 100.0, rounds=5, backoff=1.1, tries=3)
    assert rate == 100 / 1.1
    assert asked == [100.0] + 5 * [100 / 1.1]
    assert [tried["confirmed"] for tried in found] == [False, True]


async def test_void_rounds_confirm_nothing_and_tries_end() -> None:
    async def measure(_: float) -> dict[str, Any]:
        return probe_with(0, void=True)

    rate, found = await confirm(measure, 100.0, rounds=2, backoff=1.1, tries=3)
    assert rate == 0.0
    assert len(found) == 3
    assert await confirm(measure, 0.0, rounds=2, backoff=1.1, tries=3) == (0.0, [])
