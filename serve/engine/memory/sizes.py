"""How many bytes a model will take, predicted before any are allocated.

The checkpoint's header, the context's shape and the options give three parts:
- weights: exact;
- KV caches: exact for given widths of the members' prepared rows (`cache_bytes`). The widths themselves are upper
  bounds, because one-hot columns, constant columns and the like are known only once preprocessing is fitted;
- working memory: an estimate for the largest forward pass, from a count of its activations.
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
from serve.engine.coding import feature_names
from serve.engine.datetimes import DATETIME_PARTS
from serve.engine.execution.precision import Precision
from serve.engine.forward.v2_pass import MAX_HIDDEN_BYTES
from serve.engine.forward.v3_stages import MAX_TOKENS
from serve.engine.forward.votes import MAX_SCORES
from serve.engine.memory.probes import available_bytes

_WITH_THINKING_ROWS = ("tabpfn_v2_5", "tabpfn_v2_6")
_WITH_INDUCING_POINTS = ("tabpfn_v3", "tabpfn_v3_5")
_MAX_ONE_HOT_CELLS = 1_000_000
"""Beyond this number tabpfn does not encode categories (preprocessing/steps/encode_categorical_features_step.py)."""
_MAX_APPENDING_FEATURES = 500
"""`append_original="auto"` appends to tables of fewer columns than this (`APPEND_TO_ORIGINAL_THRESHOLD`)."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that a model takes, in parts. As text: the total and each part.

    Attributes:
        graphs: the memory in which recorded CUDA graphs compute. Nothing else can use it.
    """

    weights: int
    kv_caches: int
    working_memory: int
    graphs: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv_caches + self.working_memory + self.graphs

    def __str__(self) -> str:
        graphs = f", CUDA graphs {_in_units(self.graphs)}" if self.graphs else ""
        return (
            f"{_in_units(self.total)} (weights {_in_units(self.weights)}, KV caches {_in_units(self.kv_caches)}, "
            f"working memory {_in_units(self.working_memory)}{graphs})"
        )


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What a checkpoint's header says. The weights are not read."""

    architecture: str
    config: Any
    """The architecture's own parsed configuration."""
    num_parameters: int
    inference: InferenceConfig


def count_parameters(path: Path) -> int:
    """Number of weights in a checkpoint, from its header."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def read_checkpoint_facts(path: Path, task_type: TaskType) -> CheckpointFacts:
    """Read a checkpoint's header; absent entries are filled in as by `tabpfn.model_loading._build_model`."""
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
    compiled: Precision | None = None,
) -> MemoryNeed:
    """The peak of memory while the model is fitted and served.

    Args:
        precision: of tabpfn's network and its caches, as given to `tabpfn_estimators.build_estimator`.
        max_batch_rows: the largest row bucket.
        compiled: precision of the compiled forward pass, which holds its own weights and caches beside tabpfn's;
            None where tabpfn's forward pass answers.
    """
    task_type: TaskType = "multiclass" if definition.context.task is Task.CLASSIFICATION else "regression"
    facts = read_checkpoint_facts(Path(definition.checkpoint_path), task_type)
    if precision == "auto":
        autocast, _, _ = determine_precision("auto", [torch.device(device)])
    else:
        autocast = precision != "float32"  # a 16-bit network's caches are as large as autocast's
    widths = member_widths(facts, definition.context, definition.options.num_members)
    rows = _rows_per_member(facts.inference, definition.context.num_rows)
    weights = 4 * facts.num_parameters  # tabpfn holds float32 under autocast too
    caches = sum(cache_bytes(facts, task_type, rows, width, autocast) for width in widths)
    compiled_weights = compiled_caches = 0
    if compiled is not None:
        num_rotary = _num_rotary_weights(facts, max(widths))
        compiled_weights = compiled.weights.itemsize * (facts.num_parameters + num_rotary)
        compiled_caches = caches * compiled.kv_cache.itemsize // (2 if autocast else 4)
        # for each inducing point the compiled pass holds a key and a value, tabpfn's cache one vector
        compiled_caches += 4 * sum(_num_inducing_cells(facts, width) for width in widths)
    # the context itself passes through once, when the caches are built and in the start-up check
    working = _working_bytes(facts, widths, rows, max(rows, max_batch_rows))
    is_recorded = compiled is not None and device != "cpu"
    graphs = _graph_bytes(facts, widths, rows, max_batch_rows) if is_recorded else 0
    return MemoryNeed(weights + compiled_weights, caches + compiled_caches, working, graphs)


def cache_bytes(facts: CheckpointFacts, task_type: TaskType, num_rows: int, width: int, autocast: bool) -> int:
    """Bytes of one member's KV cache, as `fit_mode="fit_with_cache"` with `kv_cache_precision="auto"` builds it.

    Args:
        num_rows: context rows of the member.
        width: columns of its prepared rows.
        autocast: whether keys and values are 16-bit, as under autocast; else float32.
    """
    config = facts.config
    if facts.architecture in _WITH_INDUCING_POINTS:
        shape = {"n_train": num_rows, "n_features": width, "model_config": config, "kv_cache_precision": "auto"}
        base_dtype = "autocast" if autocast else torch.float32
        if facts.architecture == "tabpfn_v3":
            return int(tabpfn_v3.get_cache_size(**shape, base_dtype=base_dtype))
        return int(tabpfn_v3_5.get_cache_size(**shape, task_type=task_type, base_dtype=base_dtype))
    # TabPFNV2Cache and its kin: keys and values of one head, for every group of columns and the target
    num_groups = math.ceil(width / config.features_per_group)
    num_keys = (num_rows + _num_thinking_rows(facts)) * (num_groups + 1)
    keys_and_values = 2 * config.nlayers * num_keys * (config.emsize // config.nhead) * (2 if autocast else 4)
    # float32 statistics and masks of the columns, an int64 count per group, the embedding of the unknown target
    columns = num_groups * config.features_per_group
    statistics = columns * (3 * 4 + 2) if facts.architecture == "tabpfn_v2" else columns * (2 * 4 + 1) + width
    return int(keys_and_values + statistics + num_groups * 8 + config.emsize * 4)


def member_widths(facts: CheckpointFacts, context: Context, num_members: int) -> list[int]:
    """Upper bounds of the columns of each member's prepared rows; not in the order of the members.

    Recipes are distributed as by `tabpfn.preprocessing.ensemble.generate_*_ensemble_configs`.
    """
    recipes = list(facts.inference.PREPROCESS_TRANSFORMS)
    if context.task is Task.REGRESSION:
        recipes = [recipe for recipe in recipes for _ in facts.inference.REGRESSION_Y_PREPROCESS_TRANSFORMS]
    each = num_members // len(recipes)
    of_members = [recipe for recipe in recipes for _ in range(each)]
    of_members += recipes[: num_members - len(of_members)]
    rows = _rows_per_member(facts.inference, context.num_rows)
    return [_prepared_width(recipe, facts.inference, context, rows) for recipe in of_members]


def _prepared_width(recipe: PreprocessorConfig, inference: InferenceConfig, context: Context, num_rows: int) -> int:
    """Follows the order of `tabpfn.preprocessing.pipeline_factory.create_preprocessing_pipeline`."""
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
    """Upper bound of the columns that one-hot encoding adds.

    A column of declared categories, or of numbers with very few values (`tabpfn.preprocessing.modality_detection`),
    becomes one column for each of its values; missing counts as a value.
    """
    very_few = inference.MIN_UNIQUE_FOR_NUMERICAL_FEATURES - 1
    max_values = recipe.max_onehot_cardinality or math.inf

    def num_values(column: Column) -> list[int]:
        if column.kind is ColumnKind.DATETIME:
            return [very_few] * len(DATETIME_PARTS)
        values = len(set(context.cells[column.name]))
        return [values if column.kind is not ColumnKind.NUMBER or values <= very_few else 0]

    return sum(count for count in chain(*map(num_values, context.columns)) if count <= max_values)


def _rows_per_member(inference: InferenceConfig, num_rows: int) -> int:
    subsample = inference.SUBSAMPLE_SAMPLES
    return max(int(subsample), num_rows) if isinstance(subsample, int) else num_rows


def _num_thinking_rows(facts: CheckpointFacts) -> int:
    return int(facts.config.num_thinking_rows) if facts.architecture in _WITH_THINKING_ROWS else 0


def _num_inducing_cells(facts: CheckpointFacts, width: int) -> int:
    """Count of numbers in the inducing states of one member's cache."""
    if facts.architecture not in _WITH_INDUCING_POINTS:
        return 0
    config = facts.config
    return int(config.dist_embed_num_blocks * width * config.dist_embed_num_inducing_points * config.embed_dim)


def _num_rotary_weights(facts: CheckpointFacts, width: int) -> int:
    """Count of weights in the projections of queries and keys, one for each token of a row (`RotaryProjection`)."""
    if facts.architecture not in _WITH_INDUCING_POINTS:
        return 0
    config = facts.config
    num_tokens = config.feat_agg_num_cls_tokens + width
    return int(config.feat_agg_num_blocks * num_tokens * 2 * config.embed_dim**2)


def _working_bytes(facts: CheckpointFacts, widths: Sequence[int], context_rows: int, num_rows: int) -> int:
    """Bytes of one layer's float32 activations, and of its keys and values with their head copied for every query head.

    The factors count the tensors as wide as the embedding that live at once. Torch's profiler of tabpfn's forward
    passes (all architectures, CPU, float32) showed between 60 and 98 % of these sums.
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


def _graph_bytes(facts: CheckpointFacts, widths: Sequence[int], context_rows: int, num_rows: int) -> int:
    """Bytes of the pool that all graphs share: the compiled pass over the largest bucket, all members together.

    The steps of the pass are cut to the limits that this function shares with them. Not measured on a GPU yet: the
    first run there (`scripts/gpu-run`) measures the graphs.
    """
    config, members = facts.config, len(widths)
    if facts.architecture in _WITH_INDUCING_POINTS:
        factor, num_cls = 6 + 2 * config.ff_factor, config.feat_agg_num_cls_tokens
        tokens = min(members * num_rows * (max(widths) + num_cls), MAX_TOKENS)
        scores = min(members * config.icl_num_heads * context_rows * num_rows, MAX_SCORES)
        row_numbers = members * num_rows * config.embed_dim * num_cls
        return 4 * int(factor * (tokens * config.embed_dim + row_numbers) + 2 * scores)
    tokens = members * num_rows * (math.ceil(max(widths) / config.features_per_group) + 1)
    hidden = config.emsize * (4 if facts.architecture == "tabpfn_v2" else 2)
    # the hidden layer, its input in 16 bit, and three tensors as wide as the embedding
    return 3 * min(4 * int(tokens * hidden), MAX_HIDDEN_BYTES)


def check_fits(need: MemoryNeed, device: str) -> None:
    """Raises InvalidModel, with every size in its message, where the device has less memory free."""
    available = available_bytes(device)
    if available is not None and need.total > available[0]:
        raise InvalidModel(
            f"the model needs about {need}, but only {_in_units(max(0, available[0]))} {available[1]} are free; "
            "fewer context rows, fewer members or a smaller batching.max_batch_rows need less"
        )


def _in_units(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
