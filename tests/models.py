"""Small real models for tests: tabpfn's own v3.5 architecture, random weights, contexts of every column kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from serve.core import Column, ColumnKind, Context, EnsembleOptions, ModelDefinition, Scalar, Task
from training.checkpoint import CONFIG, build_network, save_checkpoint

TINY = {**CONFIG, "nlayers": 2, "dist_embed_num_blocks": 1, "feat_agg_num_blocks": 1}

COLUMNS = (
    Column("amount", ColumnKind.NUMBER),
    Column("country", ColumnKind.CATEGORY),
    Column("code", ColumnKind.CATEGORY),
    Column("seen_at", ColumnKind.DATETIME),
    Column("note", ColumnKind.TEXT),
)


def write_random_checkpoint(path: Path, seed: int = 0) -> Path:
    """A checkpoint whose answers depend on every input: zero-initialised projections are drawn as well."""
    torch.manual_seed(seed)
    network = build_network(TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(0, 0.2)
    save_checkpoint(network.state_dict(), path, TINY)
    return path


def records(num_rows: int, seed: int = 0) -> list[dict[str, Scalar]]:
    """Rows of `COLUMNS` with missing values in each."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Scalar]] = []
    for row in range(num_rows):
        cells: dict[str, Scalar] = {
            "amount": round(float(rng.lognormal(3, 1)), 2),
            "country": str(rng.choice(["DE", "FR", "NL"])),
            "code": int(rng.integers(10, 15)),
            "seen_at": f"2026-0{rng.integers(1, 10)}-1{rng.integers(0, 10)}T{rng.integers(10, 24)}:30:00",
            "note": f"note {row % 40}",
        }
        rows.append({name: None if rng.random() < 0.1 else cell for name, cell in cells.items()})
    return rows


def definition(
    checkpoint: Path, task: Task = Task.CLASSIFICATION, num_rows: int = 120, **context: Any
) -> ModelDefinition:
    """A model of `COLUMNS` on a context of `records`."""
    rows = records(num_rows, seed=1)
    rng = np.random.default_rng(2)
    amounts = np.array([row["amount"] or 0.0 for row in rows], dtype=float)
    target: list[Any] = (amounts * 2 + rng.normal(size=num_rows)).tolist()
    if task is Task.CLASSIFICATION:
        target = [str(label) for label in np.digitize(amounts, np.quantile(amounts, [0.5, 0.8]))]
    return ModelDefinition(
        name="tiny",
        version="1",
        context=Context(
            task, COLUMNS, {column.name: [row[column.name] for row in rows] for column in COLUMNS}, target, **context
        ),
        checkpoint_path=str(checkpoint),
        checkpoint_name="random-v3.5",
        licence="Apache-2.0",
        options=EnsembleOptions(num_members=4),
        example=records(1, seed=3)[0],
    )
