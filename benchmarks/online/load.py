"""Open-loop load on a running server: `python -m benchmarks.online.load --help`.

Requests are due at Poisson arrivals drawn before the run and are sent then, whatever the server does. A request's
latency counts from its due time, so a server that stalls cannot hide the requests that it kept from being sent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import envelope
from benchmarks.online.ceiling import measure_ceiling
from benchmarks.online.client import Client
from benchmarks.online.command import run_command
from benchmarks.online.offer import offer_rate
from benchmarks.online.options import LoadOptions, add_arguments, read_options
from benchmarks.online.records import Record, get_request, join_rows, read_records, vary
from benchmarks.online.summary import summarise_rate
from benchmarks.online.table import table
from benchmarks.online.verify import Refused, ask_alone, compare
from benchmarks.online.wire import predict_request


async def run_load(options: LoadOptions) -> dict[str, Any]:
    """Every rate in turn; the run as JSON. Raises Refused, OSError or ValueError before any load."""
    server, requests, alone = await _prepare(options)
    config = {**dataclasses.asdict(options), "records": options.records and Path(options.records)}
    run = envelope("online-load", config, [], server=server, ceiling=None)
    if options.ceiling:
        run["ceiling"] = await measure_ceiling(options)
    for rate in options.rate:
        run["results"].append(await _measure(options, rate, requests, alone))
        print(f"{options.model} at {rate:g}/s: done", file=sys.stderr, flush=True)
    return run


async def _prepare(options: LoadOptions) -> tuple[dict[str, Any], list[bytes], dict[int, list[float]]]:
    """What the server says of the model, the encoded requests, and the answers of some of them alone."""
    client = options.client(1)
    await client.open()
    try:
        server = await _describe(client, options)
        example = server.pop("example", None)
        requests = _requests(options, example, [column["name"] for column in server["inputs"]])
        # One is asked even unverified: a record that is refused alone has no business under load.
        num_alone = min(options.verify_records, len(requests)) if options.verify else 1
        alone = await ask_alone(client, requests[:num_alone])
    finally:
        await client.close()
    return server, requests, dict(enumerate(alone)) if options.verify else {}


async def _describe(client: Client, options: LoadOptions) -> dict[str, Any]:
    path = f"/v1/models/{options.model}"
    exchange = await client.ask(get_request(options.host, path))
    if exchange.status != 200:
        told = exchange.error or exchange.body.decode("utf-8", "replace")[:300]
        raise Refused(f"GET {path}: {exchange.status} {told}")
    answer: dict[str, Any] = json.loads(exchange.body)
    return answer


def _requests(options: LoadOptions, example: Record | None, inputs: Sequence[str]) -> list[bytes]:
    if options.records is not None:
        records = read_records(Path(options.records), inputs, options.num_records)
    elif example is not None:
        records = vary(example, options.num_records, options.seed)
    else:
        raise ValueError("the model tells no example; pass --records FILE.jsonl or FILE.parquet")
    return [predict_request(options.host, options.model, rows) for rows in join_rows(records, options.rows)]


async def _measure(
    options: LoadOptions, rate: float, requests: Sequence[bytes], alone: Mapping[int, Sequence[float]]
) -> dict[str, Any]:
    exchanges, num_connections = await offer_rate(options, rate, requests)
    result = summarise_rate(
        exchanges,
        rate=rate,
        duration_s=options.duration,
        deadline_ms=options.deadline_ms,
        max_lag_ms=options.max_lag_ms,
    )
    result["connections"] = num_connections
    result["verified"] = compare(exchanges, alone, options.tolerance) if options.verify else None
    if options.verify and result["verified"]["mismatches"]:
        result["void"] = True  # a wrong answer makes every other number worthless
        result["void_reasons"].append(
            f"{result['verified']['mismatches']} of {result['verified']['compared']} checked answers differ by more "
            f"than {options.tolerance:g} from the answer given alone"
        )
    return result


def exit_status(run: Mapping[str, Any], allow_lag: bool) -> int:
    """1 where a rate is void; `allow_lag` pardons lag and nothing else."""
    void = [result for result in run["results"] if result["void"]]
    pardoned = [result for result in void if allow_lag and result["lagged"] and len(result["void_reasons"]) == 1]
    return 1 if len(void) > len(pardoned) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.online.load", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--json", type=Path, help="write the run here")
    parser.add_argument("--plot", type=Path, help="draw it here (PNG)")
    given = parser.parse_args(arguments)
    run = run_command(parser, given, lambda: run_load(read_options(given)), (Refused, OSError, ValueError))
    if given.plot:
        from benchmarks.report import plot

        plot(run, given.plot)
    print(table(run))
    return exit_status(run, given.allow_lag)


if __name__ == "__main__":
    sys.exit(main())
