"""The load generator's configuration: one frozen value, written whole into the JSON of its run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from benchmarks.online.arrivals import ARRIVALS
from benchmarks.online.client import Client


@dataclass(frozen=True)
class LoadOptions:
    """See `HELP` for each."""

    url: str = "http://127.0.0.1:8080"
    model: str = "fraud"
    rate: tuple[float, ...] = (20.0,)
    arrivals: str = "poisson"
    duration: float = 20.0
    warmup: float = 3.0
    connections: int = 64
    max_connections: int = 1024
    rows: int = 1
    records: str | None = None
    num_records: int = 256
    seed: int = 1
    timeout: float = 30.0
    deadline_ms: float = 100.0
    verify: bool = True
    verify_records: int = 64
    tolerance: float = 1e-6
    max_lag_ms: float = 10.0
    allow_lag: bool = False
    ceiling: bool = False

    def __post_init__(self) -> None:
        if self.arrivals not in ARRIVALS:
            raise ValueError(f"--arrivals must be one of {', '.join(ARRIVALS)}, not {self.arrivals}")
        parts = urlsplit(self.url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"--url must be http://HOST[:PORT], not {self.url}")
        positive = ("duration", "connections", "rows", "num_records", "verify_records", "timeout", "max_lag_ms")
        wrong = [name for name in positive if not getattr(self, name) > 0]
        if wrong or self.warmup < 0 or not self.rate or not all(rate > 0 for rate in self.rate):
            raise ValueError(f"must be above zero: {', '.join(wrong) or 'rate; warmup at least zero'}")

    @property
    def host(self) -> str:
        """As the Host header says it."""
        return urlsplit(self.url).netloc

    def client(self, connections: int) -> Client:
        """A client of the server, not yet open."""
        parts = urlsplit(self.url)
        return Client(
            parts.hostname or "",
            parts.port or 80,
            connections=connections,
            max_connections=self.max_connections,
            timeout_s=self.timeout,
        )


HELP = {
    "url": "the server, http://HOST:PORT",
    "model": "the model to ask",
    "rate": "offered requests per second, one or more, measured in turn",
    "arrivals": "poisson, or bursty: four times the rate a tenth of the time, the same rate on average",
    "duration": "seconds measured at each rate",
    "warmup": "seconds at the same rate before, not counted",
    "connections": "keep-alive connections opened before each rate",
    "max_connections": "more are opened on need up to this many, so that the load stays open",
    "rows": "records in one request",
    "records": "JSON Lines or Parquet file of records to post; else the model's example with its numbers varied",
    "num_records": "how many different records are posted",
    "seed": "of the arrivals, the records' order and their variation",
    "timeout": "seconds from the due time after which a request is given up",
    "deadline_ms": "an answer with status 200 within this counts as goodput",
    "verify": "ask some records alone first, and compare every answer under load with that",
    "verify_records": "how many records --verify asks alone",
    "tolerance": "largest difference of a number that --verify allows",
    "max_lag_ms": "a rate whose p99 send lag passes this (or half the median latency, at least 2 ms) is void",
    "allow_lag": "exit 0 in spite of a rate that is void by lag; it stays marked",
    "ceiling": "first measure the generator itself on a trivial local server",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One argument per field of LoadOptions, with its default."""
    for option in fields(LoadOptions):
        flag, text = "--" + option.name.replace("_", "-"), HELP[option.name]
        shared: dict[str, Any] = {"default": option.default, "help": text}
        if isinstance(option.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **shared)
        elif option.name == "rate":
            parser.add_argument(flag, type=float, nargs="+", metavar="PER_S", **shared)
        else:
            kind = str if option.default is None else type(option.default)
            parser.add_argument(flag, type=kind, **shared)


def read_options(arguments: argparse.Namespace) -> LoadOptions:
    """Raises ValueError for a value that makes no sense."""
    given = {option.name: getattr(arguments, option.name) for option in fields(LoadOptions)}
    rates: Sequence[float] = given["rate"]
    return LoadOptions(**{**given, "rate": tuple(rates)})
