"""Turns what Ray Serve says of the replicas, again and again, into a line whenever something has changed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

_FAILED = ("DEPLOY_FAILED",)


class ReplicaWatch:
    """Remembers the last observation. Pure: the caller reads Ray's status and writes the lines."""

    def __init__(self, num_replicas: int) -> None:
        """`num_replicas` run when the watch begins."""
        self._running = num_replicas
        self._wanted = num_replicas
        self._status = "RUNNING"

    def observe(self, status: str, running: int | None, message: str) -> Iterator[tuple[int, str]]:
        """(log level, line) for each change.

        Args:
            status: of the application.
            running: number of its running replicas. None where Ray does not say, as after a refused configuration.
        """
        status = str(getattr(status, "value", status))
        if status != self._status and status in _FAILED:
            reason = raised_in(message) or last_line(message) or "Ray gives no reason"
            yield logging.ERROR, f"the new configuration was refused: {reason}"
        is_update = "DEPLOYING" in (status, self._status)
        running = self._running if running is None else running
        if running < self._running and is_update:
            yield logging.INFO, f"replicas are being replaced by a new configuration: {running} running"
        elif running < self._running:
            yield (
                logging.WARNING,
                f"a replica died or failed its health checks: {running} of {self._wanted} running; Ray starts another",
            )
        elif running > self._running:
            level = logging.INFO if is_update else logging.WARNING
            yield level, f"a new replica is ready: {running} of {max(running, self._wanted)} running"
        if status == "RUNNING" and running >= self._wanted:
            self._wanted = running
        self._running, self._status = running, status


def replicas_in(application: Any, deployment_name: str) -> tuple[int | None, str]:
    """(running replicas, message) of Ray's `ApplicationStatusOverview`.

    After a refused configuration Ray lists no deployment, although the old replicas go on: then (None, message).
    """
    deployment = application.deployments.get(deployment_name)
    if deployment is None:
        return None, application.message
    running = sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")
    return running, application.message or deployment.message


def raised_in(message: str) -> str | None:
    """The last exception of a traceback, without the class name of a server error; None where there is none."""
    raised = re.findall(r"^(?:serve\.core\.errors\.\w+: |(?=[\w.]+(?:Error|Exception): ))(.*)$", message, re.M)
    return str(raised[-1]) if raised else None


def last_line(message: str) -> str:
    """The last line that is not empty; empty where there is none."""
    lines = message.strip().splitlines()
    return lines[-1].strip() if lines else ""
