"""GPU instance types, and the largest task that one of them takes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

TABLE = Path(__file__).parent / "instance_types.yaml"

CPU_FOR_TASKS = 0.95
MEMORY_FOR_TASKS = 0.92
"""Shares of an instance that a task may ask for: kernel, agent and container runtime live in the rest."""


class InstanceType(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: str
    gpus: int
    gpu_mib: int
    vcpus: int
    memory_gib: int

    @property
    def cpu_units_for_tasks(self) -> int:
        return int(self.vcpus * 1_024 * CPU_FOR_TASKS)

    @property
    def memory_mib_for_tasks(self) -> int:
        return int(self.memory_gib * 1_024 * MEMORY_FOR_TASKS)


@cache
def instance_types() -> dict[str, InstanceType]:
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))["types"]
    return {name: InstanceType.model_validate(row) for name, row in rows.items()}
