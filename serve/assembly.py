"""One replica from its settings: store, engine, predictor. What both edges (`standalone.py`, `app.py`) serve."""

from __future__ import annotations

from serve.config import ServerSettings
from serve.engine.engine import TabPFNEngine
from serve.metrics import Metrics
from serve.predictor import Predictor
from serve.store import FolderStore


def assemble(settings: ServerSettings) -> Predictor:
    """A predictor that has not started. Raises StartupError where the settings name what is not there."""
    store = FolderStore(settings.store)
    engine = TabPFNEngine(settings.engine, max_batch_rows=settings.batching.max_batch_rows)
    return Predictor(store, engine, settings, Metrics())
