"""Fitted contexts are made once: the demo model, and tiny random ones for every column kind."""

from pathlib import Path

import pytest
from models import definition, write_random_checkpoint

from serve.core import ModelDefinition, Task
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.settings import EngineSettings, StoreSettings
from serve.store import FolderStore


@pytest.fixture(scope="session")
def engine() -> TabPFNEngine:
    return TabPFNEngine(EngineSettings(), max_batch_rows=256)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random-v3.5.safetensors")


@pytest.fixture(scope="session")
def demo_definition() -> ModelDefinition:
    return FolderStore(StoreSettings()).load("fraud")


@pytest.fixture(scope="session")
def demo(engine: TabPFNEngine, demo_definition: ModelDefinition) -> TabPFNContext:
    return engine.fit(demo_definition)


@pytest.fixture(scope="session")
def classifier(engine: TabPFNEngine, checkpoint: Path) -> TabPFNContext:
    return engine.fit(definition(checkpoint))


@pytest.fixture(scope="session")
def regressor(engine: TabPFNEngine, checkpoint: Path) -> TabPFNContext:
    return engine.fit(definition(checkpoint, Task.REGRESSION))
