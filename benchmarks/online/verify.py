"""Are the answers right under load? What a record is answered in a crowd must be what it was answered alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.online.client import Client, Exchange
from benchmarks.online.wire import difference, numbers, read_numbers


class Refused(Exception):
    """The server refuses a record even alone: nothing can be measured with it."""


async def ask_alone(client: Client, requests: Sequence[bytes]) -> list[list[float]]:
    """The numbers of each request's answer, asked one after the other. Raises Refused."""
    answers = []
    for request in requests:
        exchange = await client.ask(request)
        if exchange.status != 200:
            told = exchange.error or exchange.body.decode("utf-8", "replace")[:500]
            raise Refused(f"a record sent alone was answered {exchange.status}: {told}")
        answers.append(numbers(json.loads(exchange.body)))
    return answers


def compare(exchanges: Sequence[Exchange], alone: Mapping[int, Sequence[float]], tolerance: float) -> dict[str, Any]:
    """How the answers (status 200) of the records in `alone` differ from those given alone.

    `distinct_answers` says what the check can see: with 1, answers handed to the wrong caller would look right.
    """
    compared, mismatches, worst = 0, 0, 0.0
    for exchange in exchanges:
        expected = alone.get(exchange.record)
        if expected is None or exchange.status != 200:
            continue
        compared += 1
        differs = difference(read_numbers(exchange.body), expected)
        mismatches += not differs <= tolerance  # also counts NaN
        worst = max(worst, differs)
    return {
        "compared": compared,
        "mismatches": mismatches,
        "max_abs_diff": worst if worst < float("inf") else None,
        "records": len(alone),
        "distinct_answers": len({tuple(values) for values in alone.values()}),
    }
