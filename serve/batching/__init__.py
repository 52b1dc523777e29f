"""Joins the requests of all callers into batches for one device. Knows no HTTP, no torch, no Ray."""

from serve.batching.admission import AdmissionController
from serve.batching.batcher import Batcher
from serve.batching.cost import CostModel
from serve.batching.fifo import QueuedRequest, Slice
from serve.batching.limits import AdmissionLimits, QueueLimits
from serve.batching.queue import BatchQueue
from serve.batching.watchdog import BatchWatchdog

__all__ = [
    "AdmissionController",
    "AdmissionLimits",
    "BatchQueue",
    "BatchWatchdog",
    "Batcher",
    "CostModel",
    "QueueLimits",
    "QueuedRequest",
    "Slice",
]
