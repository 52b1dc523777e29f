"""The policies by name: each with its defaults, and the settings that the tuning tries.

`tuning.py` runs all `candidates` of a peer and keeps the best.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.simulation.bentoml import BentoML, BentoSettings
from benchmarks.simulation.device import Device
from benchmarks.simulation.ray_serve import RayServe, RaySettings
from benchmarks.simulation.server import Server, Setup
from benchmarks.simulation.tabpfn_serve import TabpfnServe
from benchmarks.simulation.triton import Triton, TritonSettings
from benchmarks.simulation.unbatched import Unbatched

WAITS_S = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Times to wait for more requests that the tuning tries."""
NO_LIMIT = 1_000_000


@dataclass(frozen=True)
class Contender:
    """A policy with its settings."""

    name: str
    build: Callable[[Setup], Server]
    settings: dict[str, Any]


TABPFN_SERVE = Contender("tabpfn-serve", TabpfnServe, {"settings": "defaults"})
UNBATCHED = Contender("no batching", Unbatched, {})


def ray(name: str, settings: RaySettings) -> Contender:
    """Ray Serve with these settings."""
    return Contender(name, functools.partial(RayServe, settings=settings), asdict(settings))


def triton(name: str, settings: TritonSettings) -> Contender:
    """Triton with these settings."""
    return Contender(name, functools.partial(Triton, settings=settings), asdict(settings))


def bento(name: str, settings: BentoSettings) -> Contender:
    """BentoML with these settings."""
    return Contender(name, functools.partial(BentoML, settings=settings), asdict(settings))


WITH_DEFAULTS = (
    TABPFN_SERVE,
    # the decorator's defaults, for a user who has raised the deployment's `max_ongoing_requests` as Ray advises
    ray("Ray @serve.batch", RaySettings(max_ongoing_requests=NO_LIMIT)),
    ray("Ray, all defaults", RaySettings()),
    triton("Triton", TritonSettings()),
    bento("BentoML", BentoSettings()),
    UNBATCHED,
)


def candidates(device: Device) -> dict[str, list[Contender]]:
    """Settings to try for each peer on a device. Where a server rejects large requests, its callers cut them up."""
    most = device.max_batch_rows
    cut: dict[str, Any] = {"knows_deadlines": True, "max_request_rows": most}
    tuned_ray, tuned_triton, tuned_bento = "Ray, tuned", "Triton, tuned", "BentoML, tuned"
    # with a low limit the other requests wait at the router, where they are in no closed batch
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
