"""Small real models for tests: tabpfn's own architectures, random weights, contexts of every column kind."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabpfn.architectures import ARCHITECTURES
from tabpfn.architectures.shared.bar_distribution import FullSupportBarDistribution
from tabpfn.checkpoint import save_as_safetensors

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
    _draw_zeros(network)
    save_checkpoint(network.state_dict(), path, TINY)
    return path


def _draw_zeros(network: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(0, 0.2)


def write_tiny(architecture: str, path: Path, task: Task) -> Path:
    """The same of any architecture of tabpfn; without an inference configuration, so that the released recipes apply.

    One of v3.5 is `write_random_checkpoint`'s, for both tasks.
    """
    if architecture == "tabpfn_v3_5":
        return write_random_checkpoint(path)
    torch.manual_seed(0)
    outputs = {"max_num_classes": 10} if task is Task.CLASSIFICATION else {"max_num_classes": 0, "num_buckets": 50}
    module: Any = ARCHITECTURES[architecture]
    sizes = TINY if architecture == "tabpfn_v3" else {"emsize": 32, "nlayers": 2, "nhead": 2}
    config, _ = module.parse_config({**sizes, **outputs})
    network = module.get_architecture(config)
    _draw_zeros(network)
    if architecture == "tabpfn_v3":  # it norms no queries: its scores are else near zero, and every row alike
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name == "x_embed.weight" or "q_projection.weight" in name:
                    parameter.mul_(4)
    state = network.state_dict()
    if task is Task.REGRESSION:
        bars = FullSupportBarDistribution(torch.linspace(-4, 4, 51))
        state |= {f"criterion.{name}": value for name, value in bars.state_dict().items()}
    header = {} if architecture == "tabpfn_v2" else {"architecture_name": architecture}
    save_as_safetensors({"state_dict": state, "config": dataclasses.asdict(config), **header}, path)
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
