"""A small model folder with all its files inside, and stores and processes that load it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
from store.relay import Relay

from serve.core import ModelDefinition
from serve.settings import StoreSettings
from serve.store import SourceStore, write_model
from serve.store.folder import sha256_of

WEIGHTS = bytes(range(256)) * 12_000
"""3 MB: one part of a download, which can be held in the middle."""

LARGE_WEIGHTS = WEIGHTS * 6
"""18 MB: three parts, more than the system buffers for a socket, so that a server can be killed before it sent all."""

NUM_FILES = 3
"""Manifest, context, weights."""


def write_cards(repository: Path, weights: bytes = WEIGHTS, **changes: Any) -> Path:
    """Write the folder `cards/1`, with all of its files inside."""
    folder = repository / "cards" / "1"
    folder.mkdir(parents=True)
    checkpoint = folder / "some-v3.5.safetensors"
    checkpoint.write_bytes(weights)
    table = pa.table({"amount": [1.0, None, 3.5, 4.0], "fraud": [0, 1, 0, 1]})
    facts = {"name": "some-v3.5", "licence": "Apache-2.0"}
    fields = {"name": "cards", "version": "1", "task": "classification", "target": "fraud", **changes}
    return write_model(repository, table, checkpoint, facts, columns=[{"name": "amount", "kind": "number"}], **fields)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def digest(folder: Path) -> str:
    return sha256_of(folder / "manifest.json")


def store_of(uri: str | Path, sha256: str | None = None, name: str = "cards", **settings: Any) -> SourceStore:
    entry = {"name": name, "uri": str(uri), "sha256": sha256}
    return SourceStore(StoreSettings.model_validate({"models": [entry], **settings}))


def load_cards(relay: Relay, bucket: str, cache: Path, sha256: str | None = None, **settings: Any) -> ModelDefinition:
    """The model, loaded from S3 through the relay."""
    settings = {"s3_endpoint_url": relay.endpoint, "download_dir": cache, **settings}
    return store_of(f"s3://{bucket}/models/cards/1", sha256, **settings).load("cards")


def kept(cache: Path, suffix: str = "*") -> list[str]:
    """Names of the files in a folder of downloads, without locks."""
    return sorted(path.name for path in cache.rglob(suffix) if path.is_file() and path.suffix != ".lock")


_LOAD = """
import sys
from pathlib import Path
from serve.settings import StoreSettings
from serve.core.errors import StartupError
from serve.store import SourceStore, s3
s3.READ_TIMEOUT_S = 600  # a held answer must not count as one that stopped, however slow this machine is
uri, endpoint, cache = sys.argv[1:]
models = [{"name": "cards", "uri": uri}]
store = SourceStore(StoreSettings(models=models, s3_endpoint_url=endpoint, download_dir=Path(cache)))
print("loads", flush=True)
try:
    store.load("cards")
    print("loaded")
except StartupError as error:
    print(error)
"""


def start_process(relay: Relay, bucket: str, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _LOAD, f"s3://{bucket}/models/cards/1", relay.endpoint, str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "loads\n"
    return process


def start_loading(relay: Relay, bucket: str, cache: Path, num_bytes: int) -> subprocess.Popen[str]:
    """Start a process that loads the model, and hold its download after `num_bytes`."""
    relay.hold_after(num_bytes)
    process = start_process(relay, bucket, cache)
    relay.wait_until_held()
    return process


def end_of(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a process and return the only line that it printed."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert len(printed.splitlines()) == 1
    return printed.strip()
