"""Joins the requests of all callers into batches for one device. Knows no HTTP, no torch, no Ray.

The policy (`queue`, `fifo`, `cost`, `admission`, `limits`, `lead`, `recovery`) is pure: time is an argument, and
nothing waits. The shell (`batcher`, `pipeline`, `device`, `outcomes`, `deadlines`) is asyncio and one device thread;
the batches of an engine in another process need no thread. Every admitted request gets exactly one outcome.
"""

from serve.batching.admission import AdmissionController, AdmissionPrecheck
from serve.batching.batcher import Batcher
from serve.batching.cost import CostModel
from serve.batching.fifo import QueuedRequest, Slice
from serve.batching.limits import AdmissionLimits, QueueLimits
from serve.batching.outcomes import AdmittedRequest, Asked, Outcome
from serve.batching.queue import BatchQueue
from serve.batching.watchdog import BatchWatchdog

__all__ = [
    "AdmissionController",
    "AdmissionLimits",
    "AdmissionPrecheck",
    "AdmittedRequest",
    "Asked",
    "BatchQueue",
    "BatchWatchdog",
    "Batcher",
    "CostModel",
    "Outcome",
    "QueueLimits",
    "QueuedRequest",
    "Slice",
]
