"""The group `api` of the settings (`schema.py` has the others): HTTP limits, times of connections, shutdown."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serve.settings.group import Group


def _read_num_fronts(value: Any) -> Any:
    if value == "auto":
        return value
    try:
        number = value if isinstance(value, int) and not isinstance(value, bool) else int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"must be a whole number, at least 1, or auto, but is {reprlib.repr(value)}")
    return number


NumFronts = Annotated[int | Literal["auto"], BeforeValidator(_read_num_fronts)]


class ApiSettings(Group):
    """HTTP limits and shutdown. Used by `serve/api/` and `serve/edges/`."""

    max_body_bytes: int = Field(
        8 * 2**20,
        ge=1_024,
        description="Largest request body. A larger one is refused with 413 before all of it is read.",
    )
    drain_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Longest time that a shutdown waits for admitted requests. Keep it below the time after which "
        "your orchestrator kills the process.",
    )
    lame_duck_s: float = Field(
        0.0,
        ge=0,
        description="How long a stopping server still serves every request while `/v2/health/ready` already answers "
        "503. Set it where the load balancer learns of a stop only from that check: a little more than its interval "
        "times its failure threshold. 0 stops at once.",
    )
    keep_alive_s: float = Field(
        75.0,
        gt=0,
        description="How long an idle connection stays open. Keep it above the idle timeout of the load balancer in "
        "front; otherwise the balancer may send a request into a connection that is being closed, and answer 502.",
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Time in which the request line and the headers of a request must arrive, from their first byte. A "
        "later request is answered 408, and its connection closes. Raise it only for callers on very slow links.",
    )
    body_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Time in which a body must arrive, from the end of the headers, plus one second for each 16 KiB "
        "that have come. A later request is answered 408. A caller that leaves its answer unread for as long is cut "
        "off. Keep it near the deadlines of your callers: a body that takes longer has no use.",
    )
    max_connections: int = Field(
        16_384,
        ge=1,
        description="Most open connections, idle ones included; the next one gets 503. Each takes an open file. Where "
        "the system permits fewer open files (`ulimit -Hn`), the limit is lower, and the log says so.",
    )
    num_fronts: NumFronts = Field(
        1,
        description="Processes that read requests and write answers. 1 does so in the replica's own process, which "
        "suits a CPU. On a GPU that waits for that process (its CPU use near 100 %), take as many as there are cores "
        "to spare, or `auto`: the cores less two on a GPU, 1 on a CPU. Each takes about 100 MB. They serve where the "
        "replica listens itself: `up`, and `serve` with one replica.",
    )
