"""How many bytes of a device are free: a GPU's memory, or the machine's and its container's."""

from __future__ import annotations

from pathlib import Path

import torch


def available_bytes(
    device: str, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> tuple[int, str] | None:
    """Free bytes of a device, and in words what limits them; None where the system does not say.

    On a CPU it is the smaller of the machine's available memory and the rest of the container's limit. Page cache that
    the system can drop counts as free. On a GPU the memory that torch holds and does not use counts as free.

    Args:
        device: `cpu` or `cuda:N`.
        proc, cgroup: the system's folders; tests name their own.
    """
    if torch.device(device).type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused, f"of {device}'s memory"
    free: list[tuple[int, str]] = []
    meminfo = _read_table(proc / "meminfo")
    if "MemAvailable:" in meminfo:
        free.append((1024 * meminfo["MemAvailable:"], "of the machine's memory"))
    for folder in _memory_groups(proc, cgroup):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            max_bytes, used = _read_number(folder / limit), _read_number(folder / usage)
            if max_bytes is not None and used is not None:
                statistics = _read_table(folder / "memory.stat")
                droppable = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
                free.append((max_bytes - used + droppable, "of the container's memory limit"))
    return min(free, default=None)


def _memory_groups(proc: Path, cgroup: Path) -> list[Path]:
    """The control groups (v2 and v1) of this process and their parents; each may hold a limit."""
    groups = []
    for base, controller in ((cgroup, ""), (cgroup / "memory", "memory")):
        for line in _read_lines(proc / "self" / "cgroup"):
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                inside = Path(path.lstrip("/"))
                groups += [base / part for part in (inside, *inside.parents)]
    return groups


def _read_number(path: Path) -> int | None:
    """A file's number; None for an absent file or one that says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _read_lines(path: Path) -> list[str]:
    """A file's lines; none for an absent file."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _read_table(path: Path) -> dict[str, int]:
    """Names and numbers of a file whose lines hold one of each."""
    lines = [line.split() for line in _read_lines(path)]
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
