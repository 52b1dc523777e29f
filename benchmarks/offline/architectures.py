"""TabPFN's architectures at full size with random weights, on synthetic tables.

Random weights cost as much time as trained ones and need no download and no licence; they say nothing of quality.
tabpfn's constructors set the last projection of every block to zero. Here those weights are drawn too: a network of
zeros gives every row the same answer, and a comparison of such answers could not fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabpfn.architectures import ARCHITECTURES as TABPFN_ARCHITECTURES
from tabpfn.architectures.shared.bar_distribution import FullSupportBarDistribution
from tabpfn.checkpoint import save_as_safetensors
from tabpfn.constants import ModelVersion
from tabpfn.inference_config import InferenceConfig
from tabpfn.settings import settings as tabpfn_settings

from serve.core import Column, ColumnKind, Context, EnsembleOptions, ModelDefinition, Scalar, Task

UNNORMED_GAIN = 4
"""For the weights of v3's queries and cells. v3 norms neither queries nor keys, and with attention scores near zero all
rows get the same answer."""
NUM_BARS, BORDER = 5_000, 4.0
"""A regressor's answer is a share for each of so many bars of the scaled target, which lie between -4 and 4."""
NUM_LEVELS = 6
MISSING_SHARE = 0.05


@dataclass(frozen=True)
class Architecture:
    """One of tabpfn's architectures at the size that its own defaults give it.

    Attributes:
        name: key in tabpfn's table of architectures.
        version: part of the checkpoint's file name, from which tabpfn reads the version.
        config: the settings that have no default.
    """

    name: str
    version: ModelVersion
    config: Mapping[str, Any]


ARCHITECTURES = {
    "v2": Architecture("tabpfn_v2", ModelVersion.V2, {"max_num_classes": 10}),
    "v2_5": Architecture("tabpfn_v2_5", ModelVersion.V2_5, {"max_num_classes": 10}),
    "v2_6": Architecture("tabpfn_v2_6", ModelVersion.V2_6, {"max_num_classes": 10}),
    # The class's default gives test rows every key/value head; the published v3 has one (TabPFN-3 report, 2.4).
    "v3": Architecture("tabpfn_v3", ModelVersion.V3, {"max_num_classes": 10, "icl_num_kv_heads_test": 1}),
    "v3_5": Architecture("tabpfn_v3_5", ModelVersion.V3_5, {"max_num_classes": 10, "num_buckets": 5_000}),
}


def inference_config(version: ModelVersion) -> InferenceConfig:
    """tabpfn's choice for a checkpoint that states none: v2's presets for v2, those of v2.5 for everything newer.

    Source: `model_loading._get_inference_config_from_checkpoint`.
    """
    known = version if version is ModelVersion.V2 else ModelVersion.V2_5
    return InferenceConfig.get_default("multiclass", known)


def draw_network(architecture: Architecture, seed: int, config: Mapping[str, Any] | None = None) -> torch.nn.Module:
    """A network of random weights, none of them zero; the same for the same seed. `config` replaces the full size."""
    module = TABPFN_ARCHITECTURES[architecture.name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network: torch.nn.Module = module.get_architecture(_parse(architecture, config))
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and not parameter.any():
                # Half the size of torch's own linear layers. Tried on v2: at this size answers differ most from row to
                # row. Larger weights even the rows out; with smaller ones the context hardly matters.
                parameter.normal_(0, (10 * parameter.shape[-1]) ** -0.5)
            if architecture.name == "tabpfn_v3" and (name == "x_embed.weight" or "q_projection.weight" in name):
                parameter.mul_(UNNORMED_GAIN)
    return network


def write_checkpoint(
    arch: str,
    folder: Path,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    task: Task = Task.CLASSIFICATION,
) -> Path:
    """Write a random network of `ARCHITECTURES[arch]` as safetensors that tabpfn loads by `model_path`.

    A network of v3.5 answers both tasks. The others have one head, which `task` chooses.
    """
    architecture = ARCHITECTURES[arch]
    config, bars = dict(architecture.config if config is None else config), {}
    if task is Task.REGRESSION and architecture.version is not ModelVersion.V3_5:
        config = {**config, "max_num_classes": 0, "num_buckets": NUM_BARS}
        borders = torch.linspace(-BORDER, BORDER, NUM_BARS + 1)
        bars = FullSupportBarDistribution(borders).state_dict()
    path = folder / f"random-{architecture.version.value}.safetensors"
    checkpoint = {
        "state_dict": {
            **draw_network(architecture, seed, config).state_dict(),
            **{f"criterion.{name}": value for name, value in bars.items()},
        },
        "config": asdict(_parse(architecture, config)),
        "architecture_name": architecture.name,
        "inference_config": asdict(inference_config(architecture.version)),
    }
    save_as_safetensors(checkpoint, path)
    return path


def _parse(architecture: Architecture, config: Mapping[str, Any] | None) -> Any:
    given = dict(architecture.config if config is None else config)
    parsed, unused = TABPFN_ARCHITECTURES[architecture.name].parse_config(given)
    if unused:
        raise ValueError(f"{architecture.name} does not know these settings: {', '.join(sorted(unused))}")
    return parsed


def synthetic_model(
    name: str,
    checkpoint: Path,
    context_rows: int,
    features: int,
    members: int,
    seed: int = 0,
    task: Task = Task.CLASSIFICATION,
) -> ModelDefinition:
    """A model of two classes, or of a number, on a synthetic context.

    One column in ten is a category of six levels, and at least one column if there are three or more. The others are
    numbers of very different scales. One cell in twenty is missing.
    """
    rng = np.random.default_rng(seed)
    num_categories = max(features // 10, 1) if features >= 3 else 0
    columns, cells, score = [], {}, rng.normal(size=context_rows)
    for position in range(features):
        is_category = position >= features - num_categories
        column = Column(f"f{position}", ColumnKind.CATEGORY if is_category else ColumnKind.NUMBER)
        standard = rng.integers(NUM_LEVELS, size=context_rows) if is_category else rng.normal(size=context_rows)
        score = score + rng.normal() * (standard - standard.mean())
        columns.append(column)
        cells[column.name] = _cells(column, standard, rng)
    is_class = task is Task.CLASSIFICATION
    target: list[Any] = (np.where(score > np.quantile(score, 0.7), "1", "0") if is_class else score).tolist()
    return ModelDefinition(
        name=name,
        version="1",
        context=Context(task, tuple(columns), cells, target),
        checkpoint_path=str(checkpoint),
        checkpoint_name=checkpoint.stem,
        licence="Apache-2.0",
        options=EnsembleOptions(num_members=members),
    )


def _cells(column: Column, standard: np.ndarray[Any, Any], rng: np.random.Generator) -> list[Scalar]:
    values: list[Scalar]
    if column.kind is ColumnKind.CATEGORY:
        values = [f"level {level}" for level in standard]
    else:
        values = (10 ** rng.uniform(-2, 4) * np.exp(standard * rng.uniform(0.1, 1))).tolist()
    missing = rng.random(len(values)) < MISSING_SHARE
    return [None if is_missing else value for value, is_missing in zip(values, missing, strict=True)]


@contextmanager
def large_contexts_on_cpu() -> Iterator[None]:
    """Inside the block tabpfn takes any number of context rows on a CPU; its own limit is 1,000 (v2) or 5,000."""
    before = tabpfn_settings.tabpfn.allow_cpu_large_dataset
    tabpfn_settings.tabpfn.allow_cpu_large_dataset = True
    try:
        yield
    finally:
        tabpfn_settings.tabpfn.allow_cpu_large_dataset = before
