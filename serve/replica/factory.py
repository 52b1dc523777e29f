"""Makes one replica from its settings: store, engine and predictor. Every edge serves a replica made here."""

from __future__ import annotations

from serve.core import Engine
from serve.engine.worker.client import WorkerEngine
from serve.replica.predictor import Predictor
from serve.settings import ServerSettings
from serve.store import FolderStore, ModelStore, SourceStore
from serve.telemetry.telemetry import Telemetry


def assemble(settings: ServerSettings) -> Predictor:
    """A predictor that has not started.

    Raises:
        StartupError: the settings name a repository or a device that is not there.
    """
    return Predictor(
        _store(settings),
        _engine(settings),
        settings,
        Telemetry(publishes_to_cloudwatch=settings.metrics.emf_namespace is not None),
    )


def _store(settings: ServerSettings) -> ModelStore:
    return SourceStore(settings.store) if settings.store.models else FolderStore(settings.store)


def _engine(settings: ServerSettings) -> Engine:
    max_batch_rows = settings.batching.max_batch_rows
    if settings.engine.worker_process:
        return WorkerEngine(settings.engine, max_batch_rows)
    from serve.engine.engine import TabPFNEngine  # imports torch and tabpfn, which other processes do without

    return TabPFNEngine(settings.engine, max_batch_rows)
