"""A system that is ready to be measured: encoded requests, the answers to some of them alone, its idle latency."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from benchmarks.online.client import Client, Exchange
from benchmarks.online.errors import Refused, Unreachable, UnusableInput
from benchmarks.online.records import Record, join_rows
from benchmarks.online.wire import Wire, get_request, numbers

_FIRST_ASKS = 5
"""Requests that are asked alone even when the time for it is up."""


@dataclass(frozen=True)
class Target:
    """One server and what is posted to it.

    Attributes:
        requests: whole HTTP requests as bytes; an offer draws from them.
        alone: by the request's number, the numbers of the answer that it got alone. Answers under load must agree.
        tolerance: largest difference of a number that is still the same answer.
    """

    host: str
    port: int
    requests: Sequence[bytes]
    alone: Mapping[int, Sequence[float]]
    tolerance: float

    def client(self, connections: int, max_connections: int = 1024, timeout_s: float = 30.0) -> Client:
        """A client of the server, not yet open."""
        return Client(
            self.host, self.port, connections=connections, max_connections=max_connections, timeout_s=timeout_s
        )


@dataclass(frozen=True)
class Ready:
    """What is known of an idle system.

    Attributes:
        idle_ms: median latency of one request at a time, without the very first ones.
        distinct_answers: number of different answers; with 1, an answer given to the wrong caller would look right.
    """

    target: Target
    idle_ms: float
    distinct_answers: int


def parse_url(url: str) -> tuple[str, int]:
    """Host and port of `http://HOST[:PORT]`. Raises UnusableInput."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or port == -1:
        raise UnusableInput(f"--url must be http://HOST[:PORT], not {url}")
    return parts.hostname, port or 80


@contextlib.asynccontextmanager
async def connected(client: Client, url: str) -> AsyncIterator[Client]:
    """The client, opened, then closed. Raises Unreachable."""
    try:
        try:
            await client.open()
        except OSError as error:
            raise Unreachable(
                f"no server answers at {url} ({error.strerror or error}): start one with `tabpfn-serve up`, or name a "
                "running one with --url"
            ) from error
        yield client
    finally:
        await client.close()


async def describe_model(url: str, model: str, timeout_s: float = 30.0) -> dict[str, Any]:
    """What `GET /v1/models/{model}` says. Raises UnusableInput, Unreachable, Refused."""
    host, port = parse_url(url)
    netloc, path = urlsplit(url).netloc, f"/v1/models/{model}"
    async with connected(Client(host, port, timeout_s=timeout_s), url) as client:
        exchange = await client.ask(get_request(netloc, path))
        if exchange.status == 404:
            listed = await client.ask(get_request(netloc, "/v1/models"))
            raise Refused(f"the server at {url} has no model {model!r} (404): pass --model with {_model_names(listed)}")
    if exchange.status != 200:
        raise Refused(f"GET {url}{path} was answered {describe_outcome(exchange)}")
    described: dict[str, Any] = json.loads(exchange.body)
    return described


def _model_names(listed: Exchange) -> str:
    try:
        names = [each["name"] for each in json.loads(listed.body)["models"]]
    except (ValueError, KeyError, TypeError):
        names = []
    return f"one of {', '.join(names)}" if names else "the name of a served model"


def describe_outcome(exchange: Exchange) -> str:
    """The outcome of an exchange in words.

    With an answer: its status and its content, of a problem the `detail`. Without one: the error.
    """
    if exchange.error is not None:
        return f"by no answer: {exchange.error}"
    said = exchange.body.decode("utf-8", "replace")[:500]
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = json.loads(exchange.body)["detail"]
    return f"{exchange.status}: {said}"


async def make_ready(
    url: str,
    wire: Wire,
    records: Sequence[Record],
    tolerance: float,
    *,
    rows: int = 1,
    num_alone: int | None = None,
    alone_s: float = 20.0,
    timeout_s: float = 60.0,
) -> Ready:
    """Encode requests of `rows` rows and ask them one after the other. Raises UnusableInput, Unreachable, Refused.

    Args:
        num_alone: most requests that are asked alone; None: all.
        alone_s: after this time no further requests are asked, the first `_FIRST_ASKS` excepted.
    """
    host, port = parse_url(url)
    requests = [wire.request(urlsplit(url).netloc, chosen) for chosen in join_rows(records, rows)]
    answers: dict[int, list[float]] = {}
    latencies = []
    async with connected(Client(host, port, timeout_s=timeout_s), url) as client:
        until = time.monotonic() + alone_s
        for number, request in enumerate(requests[:num_alone]):
            if number >= _FIRST_ASKS and time.monotonic() > until:
                break
            exchange = await client.ask(request)
            if exchange.status != 200:
                raise Refused(f"a request sent alone was answered {describe_outcome(exchange)}")
            answers[number] = numbers(json.loads(exchange.body))
            latencies.append(exchange.latency_ms)
    idle_ms = statistics.median(latencies[len(latencies) // 5 :]) if latencies else math.nan
    return Ready(Target(host, port, requests, answers, tolerance), idle_ms, len({*map(tuple, answers.values())}))
