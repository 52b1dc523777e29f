"""Writes a model folder that `FolderStore` serves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.store.folder import sha256_of
from serve.store.manifest import MANIFEST, Manifest

CONTEXT = "context.parquet"


def write_model(
    repository: Path, table: pa.Table, checkpoint: Path, checkpoint_facts: dict[str, Any], **manifest: Any
) -> Path:
    """Write `NAME/VERSION/` into a repository and return the folder.

    Args:
        table: the context: input columns and target.
        checkpoint: safetensors file, referred to by a path relative to the folder, not copied.
        checkpoint_facts: `name`, `licence`, `non_commercial` of `CheckpointEntry`.
        manifest: the other fields of `Manifest`.

    Raises:
        pydantic.ValidationError: the fields do not make a manifest.
    """
    folder: Path = repository / manifest["name"] / manifest["version"]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / CONTEXT, compression="zstd")
    complete = Manifest(
        context={"path": CONTEXT, "sha256": sha256_of(folder / CONTEXT)},
        checkpoint={
            "path": os.path.relpath(checkpoint, folder),
            "sha256": sha256_of(checkpoint),
            **checkpoint_facts,
        },
        **manifest,
    )
    (folder / MANIFEST).write_text(complete.model_dump_json(indent=2) + "\n")
    return folder
