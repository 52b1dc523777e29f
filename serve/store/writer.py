"""Writes a model folder that `FolderStore` and `SourceStore` serve."""

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
    """Write the folder `NAME/VERSION/` into a repository and return its path.

    Args:
        table: the context, with the input columns and the target.
        checkpoint: a safetensors file. The manifest refers to it by a path relative to the folder; it is not copied.
        checkpoint_facts: `name`, `licence` and `non_commercial` of `CheckpointEntry`.
        manifest: the other fields of `Manifest`.

    Raises:
        pydantic.ValidationError: the fields do not make a valid manifest.
        OSError: the folder cannot be written, or the checkpoint cannot be read.
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
