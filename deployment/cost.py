"""What a stage costs in a month while it runs its fewest tasks: `python -m deployment.cost STAGE`.

Prices are rows of prices.yaml, each with a date and a source. There is no price per prediction, because that needs a
throughput measured on the very instance type.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from deployment.settings import STAGES, CpuServiceSettings, GpuServiceSettings, Stage, read_stage, stage_names

TABLE = Path(__file__).parent / "prices.yaml"

_NUM_ENDPOINTS = 9
_NUM_ZONES = 2


class Price(BaseModel):
    """One row of prices.yaml: US dollars per unit, with the source of the figure and how far it was verified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    usd: float | None
    per: Literal["hour", "month", "share"]
    status: Literal["verified", "weak", "unknown"]
    source: str


class Prices(BaseModel):
    """The whole of prices.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    as_of: str
    hours_per_month: int
    items: dict[str, Price]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an estimate."""

    what: str
    usd: float | None
    """Dollars in a month. None where prices.yaml has no price."""

    status: str


@cache
def read_prices() -> Prices:
    """The price table. Raises pydantic.ValidationError for a row that is not one."""
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return Prices.model_validate({**content, "as_of": str(content["as_of"])})


def estimate(stage: Stage) -> Iterator[Line]:
    """The lines of a stage's monthly costs, for its fewest tasks at on-demand prices.

    Spot costs less, but its price changes by the hour, so it is not estimated.
    """
    yield from _gpu(stage.gpu_service)
    if stage.cpu_service is not None:
        yield from _cpu(stage.cpu_service)
    num_balancers = 1 if stage.cpu_service is None else 2
    yield _hourly("load-balancer", num_balancers, f"{num_balancers} load balancer(s), and per capacity unit")
    if stage.network.nat_gateways:
        yield _hourly("nat-gateway", stage.network.nat_gateways, f"{stage.network.nat_gateways} NAT gateway(s)")
    if stage.network.endpoints:
        count = _NUM_ENDPOINTS * _NUM_ZONES
        yield _hourly("interface-endpoint", count, f"{_NUM_ENDPOINTS} endpoints in {_NUM_ZONES} zones")
    for name in ("logs-metrics-alarms", "storage-keys-secrets"):
        yield Line(name.replace("-", ", "), None, read_prices().items[name].status)


def _gpu(settings: GpuServiceSettings) -> Iterator[Line]:
    """Priced as the first instance type that the stage names."""
    name = settings.instance_types[0]
    spot = ", at the on-demand price" if settings.spot else ""
    instances = _hourly(name, settings.min_tasks, f"{settings.min_tasks} x {name}{spot}")
    yield instances
    if settings.capacity == "managed_instances":
        fee = read_prices().items["managed-instances-fee"]
        known = instances.usd is not None and fee.usd is not None
        yield Line("fee of Managed Instances", (instances.usd or 0) * (fee.usd or 0) if known else None, fee.status)


def _cpu(settings: CpuServiceSettings) -> Iterator[Line]:
    num_vcpus, num_gb = settings.cpu_units / 1_024, settings.memory_mib / 1_024
    tasks = settings.min_tasks
    yield _hourly("fargate-vcpu", tasks * num_vcpus, f"{tasks} x Fargate, {num_vcpus:g} vCPUs")
    yield _hourly("fargate-gb", tasks * num_gb, f"{tasks} x Fargate, {num_gb:g} GB")


def _hourly(name: str, count: float, what: str) -> Line:
    prices = read_prices()
    price = prices.items[name]
    return Line(what, None if price.usd is None else count * price.usd * prices.hours_per_month, price.status)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the estimate of one stage, a line for each part and the sum of the known ones. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deployment.cost", description="Estimate a stage's monthly costs.")
    parser.add_argument("stage", choices=stage_names())
    stage = parser.parse_args(argv).stage
    lines = list(estimate(read_stage(STAGES / f"{stage}.yaml")))
    print(f"stage {stage}, fewest tasks, US dollars a month, us-east-1, prices of {read_prices().as_of}")
    for line in lines:
        amount = "    not known" if line.usd is None else f"{line.usd:13,.0f}"
        print(f"{amount}  {line.what} ({line.status})")
    print(
        f"{sum(line.usd or 0 for line in lines):13,.0f}  sum of the known prices; predictions per dollar: not measured"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
