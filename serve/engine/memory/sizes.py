"""How many bytes a model will take, known before any are allocated; and whether the device has them.

Three parts, each from the checkpoint's header, the context's shape and the options alone:
- weights: exact;
- KV caches: exact for given widths of the members' prepared rows (`cache_bytes`); the widths themselves are bounded
  from above, because one-hot columns, constant columns and the like are known only once preprocessing is fitted;
- working memory: the largest forward that will run, by a count of its activations, not a promise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tabpfn.architectures import ARCHITECTURES, tabpfn_v3, tabpfn_v3_5
from tabpfn.base import determine_precision
from tabpfn.constants import ModelVersion, TaskType
from tabpfn.inference_config import InferenceConfig
from tabpfn.preprocessing.configs import PreprocessorConfig

from serve.core import Column, ColumnKind, Context, ModelDefinition, Task
from serve.core.errors import InvalidModel
from serve.engine.execution.precision import Precision
from serve.engine.row_encoder import DATETIME_PARTS, feature_names

_WITH_THINKING_ROWS = ("tabpfn_v2_5", "tabpfn_v2_6")
_WITH_INDUCING_POINTS = ("tabpfn_v3", "tabpfn_v3_5")
_MAX_ONE_HOT_CELLS = 1_000_000
"""Beyond it the library leaves categories as they are (preprocessing/steps/encode_categorical_features_step.py)."""
_MAX_APPENDING_FEATURES = 500
"""`append_original="auto"` doubles fewer columns than these (`APPEND_TO_ORIGINAL_THRESHOLD`)."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes, part by part."""

    weights: int
    kv_caches: int
    working_memory: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_caches + self.working_memory

    def __str__(self) -> str:
        return (
            f"{_named(self.total)} (weights {_named(self.weights)}, KV caches {_named(self.kv_caches)}, "
            f"working memory {_named(self.working_memory)})"
        )


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What a checkpoint's header says; none of its weights are read."""

    architecture: str
    config: Any
    """The architecture's own parsed configuration."""
    num_parameters: int
    inference: InferenceConfig


def count_parameters(path: Path) -> int:
    """Numbers in a checkpoint, from its header."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def read_checkpoint_facts(path: Path, task_type: TaskType) -> CheckpointFacts:
    """Names missing from a header are filled as `tabpfn.model_loading._build_model` fills them."""
    num_parameters = count_parameters(path)
    with safe_open(path, "pt") as file:
        header = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    architecture = header.get("architecture_name", "tabpfn_v2")
    architecture = "tabpfn_v2_5" if architecture == "base" else architecture
    config, _ = ARCHITECTURES[architecture].parse_config(header["config"])
    stated = header.get("inference_config")
    if stated:
        names = InferenceConfig.__dataclass_fields__
        inference = InferenceConfig(**{name: value for name, value in stated.items() if name in names})
    else:
        release = ModelVersion.V2 if architecture == "tabpfn_v2" else ModelVersion.V2_5
        inference = InferenceConfig.get_default(task_type, release)
    return CheckpointFacts(architecture, config, num_parameters, inference)


def predict_bytes(
    definition: ModelDefinition,
    device: str,
    precision: str,
    max_batch_rows: int,
    own: Precision | None = None,
) -> MemoryNeed:
    """What fitting and serving the model will take at its height.

    Args:
        precision: of the library's network and its caches, as `library.build_estimator` is given it.
        max_batch_rows: the largest row bucket.
        own: precision of our own forward, which lays weights and caches out once more beside the library's;
            None where the library's forward answers.
    """
    task_type: TaskType = "multiclass" if definition.context.task is Task.CLASSIFICATION else "regression"
    facts = read_checkpoint_facts(Path(definition.checkpoint_path), task_type)
    if precision == "auto":
        autocast, _, _ = determine_precision("auto", [torch.device(device)])
    else:
        autocast = precision != "float32"  # a 16-bit network's caches are as large as autocast's
    widths = member_widths(facts, definition.context, definition.options.num_members)
    rows = _rows_per_member(facts.inference, definition.context.num_rows)
    weights = 4 * facts.num_parameters  # the library holds float32 under autocast too
    caches = sum(cache_bytes(facts, task_type, rows, width, autocast) for width in widths)
    own_weights = own_caches = 0
    if own is not None:
        own_weights = own.weights.itemsize * (facts.num_parameters + _num_turned_weights(facts, max(widths)))
        own_caches = caches * own.kv_cache.itemsize // (2 if autocast else 4)
        # of each inducing point ours holds a key and a value, the cache one vector
        own_caches += 4 * sum(_num_inducing_cells(facts, width) for width in widths)
    # the context itself passes through once, when the caches are built and in the start-up check
    working = _working_bytes(facts, widths, rows, max(rows, max_batch_rows))
    return MemoryNeed(weights + own_weights, caches + own_caches, working)


def cache_bytes(facts: CheckpointFacts, task_type: TaskType, num_rows: int, width: int, autocast: bool) -> int:
    """One member's KV cache as `fit_mode="fit_with_cache"`, `kv_cache_precision="auto"` builds it.

    Args:
        num_rows: context rows that the member sees.
        width: columns of its prepared rows.
        autocast: 16-bit keys and values, as under autocast; else float32.
    """
    config = facts.config
    if facts.architecture in _WITH_INDUCING_POINTS:
        shape = {"n_train": num_rows, "n_features": width, "model_config": config, "kv_cache_precision": "auto"}
        base_dtype = "autocast" if autocast else torch.float32
        if facts.architecture == "tabpfn_v3":
            return int(tabpfn_v3.get_cache_size(**shape, base_dtype=base_dtype))
        return int(tabpfn_v3_5.get_cache_size(**shape, task_type=task_type, base_dtype=base_dtype))
    # TabPFNV2Cache and its like: keys and values of one head, for every group of columns and the target
    num_groups = math.ceil(width / config.features_per_group)
    num_keys = (num_rows + _num_thinking_rows(facts)) * (num_groups + 1)
    keys_and_values = 2 * config.nlayers * num_keys * (config.emsize // config.nhead) * (2 if autocast else 4)
    # float32 statistics and masks of the columns, an int64 count per group, the embedding of the unknown target
    columns = num_groups * config.features_per_group
    statistics = columns * (3 * 4 + 2) if facts.architecture == "tabpfn_v2" else columns * (2 * 4 + 1) + width
    return int(keys_and_values + statistics + num_groups * 8 + config.emsize * 4)


def member_widths(facts: CheckpointFacts, context: Context, num_members: int) -> list[int]:
    """Columns of each member's prepared rows, at most; in no member's order.

    Recipes are dealt out as `tabpfn.preprocessing.ensemble.generate_*_ensemble_configs` deals them.
    """
    recipes = list(facts.inference.PREPROCESS_TRANSFORMS)
    if context.task is Task.REGRESSION:
        recipes = [recipe for recipe in recipes for _ in facts.inference.REGRESSION_Y_PREPROCESS_TRANSFORMS]
    each = num_members // len(recipes)
    dealt = [recipe for recipe in recipes for _ in range(each)]
    dealt += recipes[: num_members - len(dealt)]
    rows = _rows_per_member(facts.inference, context.num_rows)
    return [_prepared_width(recipe, facts.inference, context, rows) for recipe in dealt]


def _prepared_width(recipe: PreprocessorConfig, inference: InferenceConfig, context: Context, num_rows: int) -> int:
    """In the order of `tabpfn.preprocessing.pipeline_factory.create_preprocessing_pipeline`."""
    width: int = len(feature_names(context.columns))
    if inference.POLYNOMIAL_FEATURES != "no":
        pairs = width * (width + 1) // 2
        width += pairs if inference.POLYNOMIAL_FEATURES == "all" else min(pairs, int(inference.POLYNOMIAL_FEATURES))
    appends = recipe.append_original
    if appends == "auto":
        appends = width < _MAX_APPENDING_FEATURES and width <= recipe.max_features_per_estimator / 2
    outputs = 2 if recipe.name == "norm_and_kdi" else 1
    width = width * (outputs + 1) if appends else width * outputs
    if recipe.categorical_name == "onehot":
        most = max(width, _MAX_ONE_HOT_CELLS // num_rows)
        width = min(width + _num_one_hot_columns(inference, context, recipe), most)
    width = min(width, recipe.max_features_per_estimator)
    if recipe.global_transformer_name is not None and width >= 2:
        share = 2 if recipe.global_transformer_name == "svd" else 4
        width += max(1, min(num_rows // 10 + 1, width // share))
    return width + int(inference.FINGERPRINT_FEATURE)


def _num_one_hot_columns(inference: InferenceConfig, context: Context, recipe: PreprocessorConfig) -> int:
    """Columns that one-hot encoding adds at most.

    Declared categories, and numbers of very few values (`tabpfn.preprocessing.modality_detection`), become as many
    columns as they have values; missing counts as one.
    """
    very_few = inference.MIN_UNIQUE_FOR_NUMERICAL_FEATURES - 1
    most = recipe.max_onehot_cardinality or math.inf

    def num_values(column: Column) -> list[int]:
        if column.kind is ColumnKind.DATETIME:
            return [very_few] * len(DATETIME_PARTS)
        values = len(set(context.cells[column.name]))
        return [values if column.kind is not ColumnKind.NUMBER or values <= very_few else 0]

    return sum(count for count in chain(*map(num_values, context.columns)) if count <= most)


def _rows_per_member(inference: InferenceConfig, num_rows: int) -> int:
    asked = inference.SUBSAMPLE_SAMPLES
    return max(int(asked), num_rows) if isinstance(asked, int) else num_rows


def _num_thinking_rows(facts: CheckpointFacts) -> int:
    return int(facts.config.num_thinking_rows) if facts.architecture in _WITH_THINKING_ROWS else 0


def _num_inducing_cells(facts: CheckpointFacts, width: int) -> int:
    """Numbers in the inducing states of one member's cache."""
    if facts.architecture not in _WITH_INDUCING_POINTS:
        return 0
    config = facts.config
    return int(config.dist_embed_num_blocks * width * config.dist_embed_num_inducing_points * config.embed_dim)


def _num_turned_weights(facts: CheckpointFacts, width: int) -> int:
    """Numbers in the projections of queries and keys, one for each token of a row (`layers.RotaryProjection`)."""
    if facts.architecture not in _WITH_INDUCING_POINTS:
        return 0
    config = facts.config
    num_tokens = config.feat_agg_num_cls_tokens + width
    return int(config.feat_agg_num_blocks * num_tokens * 2 * config.embed_dim**2)


def _working_bytes(facts: CheckpointFacts, widths: Sequence[int], context_rows: int, num_rows: int) -> int:
    """Float32 activations of one layer, and its keys and values with their head copied for every query head.

    The factors count tensors as wide as the embedding that live at once. Torch's profiler of the library's forwards
    (all architectures, CPU, float32) showed between 60 and 98 % of these sums.
    """
    config = facts.config
    if facts.architecture in _WITH_INDUCING_POINTS:
        members, factor = len(widths), 6 + 2 * config.ff_factor
        row_size = config.embed_dim * config.feat_agg_num_cls_tokens
        rows = min(members * num_rows, max(config.max_batched_estimator_rows, num_rows))
        cells = min(rows * max(widths), config.inference_chunk_cells)
        return 4 * int(cells * config.embed_dim * factor + row_size * (rows * factor + 2 * members * context_rows))
    # one member after another; v2's feed-forward is four times as wide as its embedding, the later ones' twice
    factor = 3 + 2 * (4 if facts.architecture == "tabpfn_v2" else 2)
    tokens = math.ceil(max(widths) / config.features_per_group) + 1
    rows = num_rows + _num_thinking_rows(facts)
    return 4 * int(tokens * config.emsize * (rows * factor + 2 * context_rows))


def available_bytes(
    device: str, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> tuple[int, str] | None:
    """Free bytes of a device and what limits them; None where the system does not say.

    On the CPU the smaller of the machine's available memory and what the container's limit leaves; page cache that
    can be dropped counts as free.
    """
    if torch.device(device).type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused, f"of {device}'s memory"
    free: list[tuple[int, str]] = []
    meminfo = _read_table(proc / "meminfo")
    if "MemAvailable:" in meminfo:
        free.append((1024 * meminfo["MemAvailable:"], "of the machine's memory"))
    for folder in _memory_groups(proc, cgroup):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, used = _read_number(folder / limit), _read_number(folder / usage)
            if most is not None and used is not None:
                statistics = _read_table(folder / "memory.stat")
                droppable = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
                free.append((most - used + droppable, "of the container's memory limit"))
    return min(free, default=None)


def _memory_groups(proc: Path, cgroup: Path) -> list[Path]:
    """The control groups (v2 and v1) that this process is in, and those around them; each may hold a limit."""
    groups = []
    for base, controller in ((cgroup, ""), (cgroup / "memory", "memory")):
        for line in _read_lines(proc / "self" / "cgroup"):
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                inside = Path(path.lstrip("/"))
                groups += [base / part for part in (inside, *inside.parents)]
    return groups


def check_fits(need: MemoryNeed, device: str) -> None:
    """Raises InvalidModel, with every size in the message, if the device has not got that much."""
    available = available_bytes(device)
    if available is not None and need.total > available[0]:
        raise InvalidModel(
            f"the model needs about {need}, but only {_named(max(0, available[0]))} {available[1]} are free; "
            "fewer context rows, members or max_batch_rows need less"
        )


def _read_number(path: Path) -> int | None:
    """None for a file that is not there or says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _read_lines(path: Path) -> list[str]:
    """Empty for a file that is not there."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _read_table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = [line.split() for line in _read_lines(path)]
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}


def _named(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
