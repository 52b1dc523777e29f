"""Predicted bytes against the bytes that tabpfn really builds, and a refusal that names the sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import COLUMNS, definition, write_tiny
from safetensors.torch import load_file

from serve.core import Column, ColumnKind, ModelDefinition, QueryTable, Task
from serve.core.errors import InvalidModel
from serve.engine import cleaning, tabpfn_estimators
from serve.engine.execution.precision import Precision
from serve.engine.memory import sizes as memory
from serve.engine.memory.sizes import MemoryNeed
from serve.engine.row_encoder import RowEncoder

TASK_TYPES: dict[Task, Any] = {Task.CLASSIFICATION: "multiclass", Task.REGRESSION: "regression"}


def fit(model: ModelDefinition, precision: str = "float32") -> Any:
    context = model.context
    records = [{c.name: context.cells[c.name][row] for c in context.columns} for row in range(context.num_rows)]
    frame = cleaning.context_frame(model, RowEncoder(context.columns).read(QueryTable.from_records(records)))
    return tabpfn_estimators.build_estimator(model, frame, "fit_with_cache", "cpu", precision)


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(item)


def cached_bytes(estimator: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(estimator.executor_.kv_caches))


def prepared_widths(estimator: Any) -> list[int]:
    """Columns of each member's rows as the network meets them."""
    widths = []
    names = len(estimator.inferred_feature_schema_.features)
    for member in estimator.executor_.ensemble_members:
        rows = torch.as_tensor(member.transform_X_test(torch.zeros(1, names).double().numpy()))
        gpu = member.gpu_preprocessor
        if gpu is not None:
            prepared = gpu(rows[:, None].float(), feature_schema=member.feature_schema, use_fitted_cache=True).x
            widths.append(prepared.shape[-1])
        else:
            widths.append(rows.shape[-1])
    return widths


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("architecture", ["tabpfn_v2", "tabpfn_v2_5", "tabpfn_v2_6", "tabpfn_v3", "tabpfn_v3_5"])
def test_the_cache_formula_is_exact_for_given_widths(architecture: str, task: Task, tmp_path: Path) -> None:
    path = write_tiny(architecture, tmp_path / f"{architecture.replace('tabpfn_', '')}.safetensors", task)
    facts = memory.read_checkpoint_facts(path, TASK_TYPES[task])
    for num_rows in (40, 131):
        estimator = fit(definition(path, task, num_rows))
        widths = prepared_widths(estimator)
        formula = [memory.cache_bytes(facts, TASK_TYPES[task], num_rows, width, False) for width in widths]
        assert sum(formula) == cached_bytes(estimator)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("architecture", ["tabpfn_v2", "tabpfn_v3_5"])
def test_a_prediction_holds_weights_to_the_byte_and_caches_within_a_bound(
    architecture: str, task: Task, tmp_path: Path
) -> None:
    path = write_tiny(architecture, tmp_path / "v3.5.safetensors", task)
    for num_rows, num_members in ((60, 4), (200, 3)):
        model = definition(path, task, num_rows)
        model = dataclasses.replace(model, options=dataclasses.replace(model.options, num_members=num_members))
        need = memory.predict_bytes(model, "cpu", "float32", 16)
        estimator = fit(model)
        built = cached_bytes(estimator)
        widths = memory.member_widths(memory.read_checkpoint_facts(path, TASK_TYPES[task]), model.context, num_members)
        assert need.weights == sum(tensor.numel() * 4 for tensor in load_file(path).values())
        assert all(bound >= real for bound, real in zip(widths, prepared_widths(estimator), strict=True))
        if architecture == "tabpfn_v3_5":
            assert need.kv_caches == built
        else:  # which columns are doubled, and which values are too rare, is known after the fit
            assert built <= need.kv_caches <= 1.4 * built


def test_16_bit_keys_and_values_are_predicted_where_tabpfn_takes_them(tmp_path: Path) -> None:
    path = write_tiny("tabpfn_v2", tmp_path / "v2.safetensors", Task.CLASSIFICATION)
    facts = memory.read_checkpoint_facts(path, "multiclass")
    estimator = fit(definition(path, num_rows=60), "auto")
    widths = prepared_widths(estimator)
    predicted = sum(memory.cache_bytes(facts, "multiclass", 60, width, estimator.use_autocast_) for width in widths)
    assert predicted == pytest.approx(cached_bytes(estimator), rel=0.02)


@pytest.mark.parametrize("architecture", ["tabpfn_v2_6", "tabpfn_v3", "tabpfn_v3_5"])
def test_the_compiled_forward_pass_adds_its_copies(architecture: str, tmp_path: Path) -> None:
    """They are half as large as tabpfn's. v3 and v3.5 add float32 keys beside the values of their inducing points, and
    a projection for every token of a row."""
    model = definition(write_tiny(architecture, tmp_path / "v3.5.safetensors", Task.CLASSIFICATION))
    alone = memory.predict_bytes(model, "cpu", "float32", 16)
    beside = memory.predict_bytes(model, "cpu", "float32", 16, compiled=Precision(torch.bfloat16, torch.bfloat16))
    facts = memory.read_checkpoint_facts(Path(model.checkpoint_path), "multiclass")
    columns = rotary = 0
    if architecture != "tabpfn_v2_6":
        widths = memory.member_widths(facts, model.context, model.options.num_members)
        estimator = fit(model)
        hidden = [state for cache in estimator.executor_.kv_caches for state in cache.inducing_hidden]
        columns = sum(state.numel() for state in hidden) * sum(widths) // sum(prepared_widths(estimator))
        tokens = facts.config.feat_agg_num_cls_tokens + max(widths)
        rotary = facts.config.feat_agg_num_blocks * tokens * 2 * facts.config.embed_dim**2
    assert beside.weights == alone.weights * 3 // 2 + 2 * rotary
    assert beside.kv_caches == alone.kv_caches * 3 // 2 + 4 * columns


def test_more_rows_or_wider_batches_work_in_more_memory(tmp_path: Path) -> None:
    path = write_tiny("tabpfn_v2", tmp_path / "v2.safetensors", Task.CLASSIFICATION)
    sizes = [
        memory.predict_bytes(definition(path, num_rows=rows), "cpu", "float32", batch).working_memory
        for rows, batch in ((60, 16), (60, 256), (120, 256))
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def test_every_recipe_of_tabpfn_is_bounded_from_above(tmp_path: Path) -> None:
    """Wide and narrow tables, few and many values, through the recipes that the released checkpoints use."""
    number = [Column(f"n{index}", ColumnKind.NUMBER) for index in range(12)]
    for task in Task:
        path = write_tiny("tabpfn_v2_5", tmp_path / f"v2.5-{task}.safetensors", task)
        facts = memory.read_checkpoint_facts(path, TASK_TYPES[task])
        for columns in (COLUMNS[:1], tuple(number), (*COLUMNS, *number)):
            model = definition(path, task, num_rows=80)
            amounts = [float(row % 7) for row in range(80)]
            cells = {
                **model.context.cells,
                **{column.name: amounts[i:] + amounts[:i] for i, column in enumerate(number)},
            }
            context = dataclasses.replace(
                model.context, columns=columns, cells={column.name: cells[column.name] for column in columns}
            )
            model = dataclasses.replace(model, context=context)
            bounds = memory.member_widths(facts, context, 4)
            assert all(bound >= width for bound, width in zip(bounds, prepared_widths(fit(model)), strict=True))


@pytest.mark.parametrize("architecture", ["tabpfn_v2", "tabpfn_v2_6", "tabpfn_v3", "tabpfn_v3_5"])
def test_the_pool_of_graphs_counts_on_a_gpu_and_grows_with_the_largest_bucket(
    tmp_path: Path, architecture: str
) -> None:
    path = write_tiny(architecture, tmp_path / f"{architecture[7:].replace('_', '.')}.safetensors", Task.REGRESSION)
    model, precision = definition(path, Task.REGRESSION, 80), Precision(torch.bfloat16, torch.bfloat16)
    on_gpu = [memory.predict_bytes(model, "cuda:0", "float32", rows, precision) for rows in (16, 64)]
    assert 0 < on_gpu[0].graphs < on_gpu[1].graphs
    assert "CUDA graphs" in str(on_gpu[0])
    assert memory.predict_bytes(model, "cpu", "float32", 64, precision).graphs == 0
    assert memory.predict_bytes(model, "cuda:0", "float32", 64, None).graphs == 0


def test_a_refusal_names_every_size() -> None:
    need = MemoryNeed(10**15, 2 * 10**15, 3 * 10**12)
    with pytest.raises(InvalidModel) as refusal:
        memory.check_fits(need, "cpu")
    message = str(refusal.value)
    for part in ("weights 1000000.00 GB", "KV caches 2000000.00 GB", "working memory 3000.00 GB", "3003000.00 GB"):
        assert part in message
    assert "are free" in message
    memory.check_fits(MemoryNeed(1, 1, 1), "cpu")
