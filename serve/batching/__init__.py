"""Joins the requests of all callers into batches for one device. Knows no HTTP, no torch, no Ray."""

from serve.batching.admission import AdmissionController
from serve.batching.batcher import Batcher
from serve.batching.queue import BatchQueue

__all__ = ["AdmissionController", "BatchQueue", "Batcher"]
