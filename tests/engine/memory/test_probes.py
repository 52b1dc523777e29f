"""Free bytes of a device, read from the system's files or from the GPU's driver."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serve.engine.memory.probes import available_bytes


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_smaller_of_machine_and_container_counts(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    assert available_bytes("cpu", proc, groups) is None
    write(proc / "meminfo", "MemTotal:  9 kB\nMemAvailable:  8 kB\nHugePages_Total:  0\n")
    assert available_bytes("cpu", proc, groups) == (8192, "of the machine's memory")

    write(proc / "self" / "cgroup", "0::/pod/app\n")
    write(groups / "memory.max", "max\n")
    write(groups / "pod" / "memory.max", "6000\n")
    write(groups / "pod" / "memory.current", "5000\n")
    assert available_bytes("cpu", proc, groups) == (1000, "of the container's memory limit")
    write(groups / "pod" / "memory.stat", "anon 1\ninactive_file 500\n")
    assert available_bytes("cpu", proc, groups) == (1500, "of the container's memory limit")

    write(proc / "self" / "cgroup", "4:cpu,memory:/pod\n0::/\n")
    write(groups / "memory" / "pod" / "memory.limit_in_bytes", "900\n")
    write(groups / "memory" / "pod" / "memory.usage_in_bytes", "200\n")
    assert available_bytes("cpu", proc, groups) == (700, "of the container's memory limit")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_says_what_it_has() -> None:
    available = available_bytes("cuda:0")
    assert available is not None
    assert 0 < available[0] <= torch.cuda.get_device_properties(0).total_memory
    assert available[1] == "of cuda:0's memory"
