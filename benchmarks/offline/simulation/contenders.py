"""The policies by name, each as it comes and, where it has something to set, set as well as it can be for a device.

What is tuned is found by trying every one of `candidates`; see `tuning.py`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.offline.simulation.bentoml import BentoML, BentoSettings
from benchmarks.offline.simulation.clock import VirtualClock
from benchmarks.offline.simulation.device import Device
from benchmarks.offline.simulation.ours import Ours
from benchmarks.offline.simulation.ray_serve import RayServe, RaySettings
from benchmarks.offline.simulation.request import Context
from benchmarks.offline.simulation.server import OnEnd, Server
from benchmarks.offline.simulation.triton import Triton, TritonSettings
from benchmarks.offline.simulation.unbatched import Unbatched

Build = Callable[[VirtualClock, Device, Sequence[Context], OnEnd | None], Server]
WAITS_S = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Times to wait for company that are tried."""
NO_LIMIT = 1_000_000


@dataclass(frozen=True)
class Contender:
    """A policy with its settings."""

    name: str
    build: Build
    settings: dict[str, Any]


OURS = Contender("tabpfn-serve", Ours, {"settings": "defaults"})
UNBATCHED = Contender("no batching", Unbatched, {})


def ray(name: str, settings: RaySettings) -> Contender:
    return Contender(name, functools.partial(RayServe, settings=settings), asdict(settings))


def triton(name: str, settings: TritonSettings) -> Contender:
    return Contender(name, functools.partial(Triton, settings=settings), asdict(settings))


def bento(name: str, settings: BentoSettings) -> Contender:
    return Contender(name, functools.partial(BentoML, settings=settings), asdict(settings))


AS_THEY_COME = (
    OURS,
    # the decorator's defaults, for a user who has raised the deployment's `max_ongoing_requests` as Ray advises
    ray("Ray @serve.batch", RaySettings(max_ongoing_requests=NO_LIMIT)),
    ray("Ray, all defaults", RaySettings()),
    triton("Triton", TritonSettings()),
    bento("BentoML", BentoSettings()),
    UNBATCHED,
)


def candidates(device: Device) -> dict[str, list[Contender]]:
    """What is tried for each peer on a device. Larger requests are cut up by the callers of those who refuse them."""
    most = device.max_batch_rows
    cut: dict[str, Any] = {"knows_deadlines": True, "max_request_rows": most}
    tuned_ray, tuned_triton, tuned_bento = "Ray, tuned", "Triton, tuned", "BentoML, tuned"
    # with few ongoing the others wait with the router, where no batch is closed over them
    limits = (most // 2, most, 2 * most, NO_LIMIT)
    return {
        tuned_ray: [
            ray(tuned_ray, RaySettings(most, wait_s, max_ongoing_requests=limit, counts_rows=True, **cut))
            for wait_s, limit in itertools.product(WAITS_S, limits)
        ],
        tuned_triton: [
            triton(tuned_triton, TritonSettings(most, wait_s, preferred, has_priorities=True, **cut))
            for wait_s, preferred in itertools.product(WAITS_S[:6], ((), (most // 4, most // 2, most)))
        ],
        tuned_bento: [
            bento(tuned_bento, BentoSettings(most, factor * device.deadline_s)) for factor in (0.5, 0.75, 1.0, 2.0)
        ],
    }
