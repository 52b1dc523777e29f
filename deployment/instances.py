"""The GPU instance types that a stage may name, and how large a task each of them can hold."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

TABLE = Path(__file__).parent / "instance_types.yaml"

CPU_FOR_TASKS = 0.95
MEMORY_FOR_TASKS = 0.92
"""Shares of an instance that tasks may ask for. Kernel, ECS agent and container runtime use the rest."""


class InstanceType(BaseModel):
    """One row of instance_types.yaml: the hardware of an EC2 instance type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: str
    gpus: int
    gpu_mib: int
    vcpus: int
    memory_gib: int

    @property
    def cpu_units_for_tasks(self) -> int:
        """CPU units (1,024 to a vCPU) that the tasks on one instance may ask for together."""
        return int(self.vcpus * 1_024 * CPU_FOR_TASKS)

    @property
    def memory_mib_for_tasks(self) -> int:
        """Memory in MiB that the tasks on one instance may ask for together."""
        return int(self.memory_gib * 1_024 * MEMORY_FOR_TASKS)


@cache
def instance_types() -> dict[str, InstanceType]:
    """Every row of instance_types.yaml, by name such as `g6.xlarge`. Raises pydantic.ValidationError for a bad row."""
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))["types"]
    return {name: InstanceType.model_validate(row) for name, row in rows.items()}
