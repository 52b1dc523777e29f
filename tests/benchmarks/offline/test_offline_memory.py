"""Bytes of tensors, and the peak of this process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from benchmarks.offline.memory import peak_device_bytes, peak_rss_bytes, reset_peaks, tensor_bytes


@dataclass
class Entry:
    key: torch.Tensor
    value: torch.Tensor | None = None
    name: str = "entry"


def test_tensors_are_found_in_containers_and_dataclasses() -> None:
    entry = Entry(torch.zeros(10), torch.zeros(3, dtype=torch.int8))
    assert tensor_bytes([{"a": entry}, (torch.zeros(2, 2, dtype=torch.float64), None)]) == 40 + 3 + 32


def test_a_storage_that_is_shared_counts_once() -> None:
    whole = torch.zeros(100)
    assert tensor_bytes(whole, whole[:10], [whole.view(10, 10)]) == 400
    assert tensor_bytes(Entry(whole)) == 400


def test_the_peak_includes_memory_in_use() -> None:
    held = np.ones(2**24)  # 128 MiB, every page written
    assert held.sum() == 2**24
    assert 2**27 < peak_rss_bytes() < 2**40


def test_the_peak_counts_from_its_reset() -> None:
    held = np.ones(2**25)  # 256 MiB
    with_it = peak_rss_bytes()
    assert held.sum() == 2**25
    del held
    if not reset_peaks():
        pytest.skip("this kernel does not reset the mark")
    assert peak_rss_bytes() <= with_it - 2**26


def test_a_cpu_has_no_device_memory() -> None:
    assert peak_device_bytes("cpu") is None
