"""A fitted estimator that was kept as a file is served as it answers itself."""

import itertools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from estimators import (
    DEMO,
    FIT_MODES,
    WRITERS,
    answers,
    engine,
    fitted,
    imported,
    outcome,
    query,
    records,
    served,
    table,
)  # fmt: skip
from models import write_tiny
from tabpfn.preprocessing.configs import PreprocessorConfig

from serve.core import ColumnKind, QueryTable, Task
from serve.core.errors import InvalidModel
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.checks.warmup import warm_up
from serve.engine.worker import wire
from serve.engine.worker.client import make_handle
from serve.engine.worker.messages import Fitted
from serve.engine.worker.server import describe_context

TASKS = (Task.CLASSIFICATION, Task.REGRESSION)


def assert_served(estimator: Any, file: Path, tolerance: float = 1e-5, **settings: Any) -> None:
    """The engine answers as the estimator does, and passes what a start checks."""
    using = engine(**settings)
    context = using.fit(imported(file, file.parent / "made"))
    canaries = canary_rows(context.encode_context())
    warm_up(using, context, canaries, (1, 8), 1e-5)
    check_parity(using, context, canaries, 1e-5)
    rows = query()
    # As it is in a file, not as it was before: an array may lie in memory otherwise afterwards, products of it differ
    # in the last bit, and in presets with a fingerprint (v2) the hash of a row in a few may come out another.
    expected = answers(pickle.loads(pickle.dumps(estimator)), rows)
    scale = 1.0 if context.classes else np.abs(expected).max()
    got = served(using, context, records(rows))
    assert np.ptp(got, axis=0).max() > 1e-3 * scale, "the rows must be told apart"
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("task", "fit_mode", "name"),
    [
        (task, fit_mode, name)
        for task, fit_mode, name in itertools.product(TASKS, FIT_MODES, WRITERS)
        if task is Task.CLASSIFICATION or fit_mode == "fit_with_cache" or name == "model.pkl"
    ],
)
def test_the_demo_checkpoints_estimators_in_every_form(tmp_path: Path, task: Task, fit_mode: str, name: str) -> None:
    estimator = fitted(task, fit_mode=fit_mode)
    WRITERS[name](estimator, tmp_path / name)
    assert_served(estimator, tmp_path / name)


@pytest.mark.parametrize("fit_mode", FIT_MODES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("architecture", ["tabpfn_v2", "tabpfn_v2_6", "tabpfn_v3"])
def test_other_architectures(tmp_path: Path, architecture: str, task: Task, fit_mode: str) -> None:
    suffix = architecture.removeprefix("tabpfn_").replace("_", ".")
    checkpoint = write_tiny(architecture, tmp_path / f"tiny-{suffix}.safetensors", task)
    estimator = fitted(task, checkpoint, fit_mode)
    WRITERS["model.pkl"](estimator, tmp_path / "model.pkl")
    checkpoint.unlink()  # a pickle takes its weights along
    assert_served(estimator, tmp_path / "model.pkl")


@pytest.mark.parametrize(
    "options",
    [
        {"balance_probabilities": True, "average_before_softmax": True, "softmax_temperature": 0.5},
        {"kv_cache_precision": "auto"},
        {"inference_config": {"SUBSAMPLE_SAMPLES": 40, "POLYNOMIAL_FEATURES": 5, "ENABLE_GPU_PREPROCESSING": True}},
    ],
)
@pytest.mark.parametrize("fit_mode", FIT_MODES)
def test_the_estimators_own_options_count(tmp_path: Path, options: dict[str, Any], fit_mode: str) -> None:
    estimator = fitted(Task.CLASSIFICATION, fit_mode=fit_mode, **options)
    WRITERS["model.pkl"](estimator, tmp_path / "model.pkl")
    assert_served(estimator, tmp_path / "model.pkl")


@pytest.mark.parametrize("precision", ["autocast", torch.float16, torch.float64])
def test_caches_of_another_precision_are_served_in_float32(tmp_path: Path, precision: Any) -> None:
    estimator = fitted(Task.CLASSIFICATION, inference_precision=precision)
    WRITERS["model.pkl"](estimator, tmp_path / "model.pkl")
    assert_served(estimator, tmp_path / "model.pkl", tolerance=1e-2)


def test_by_tabpfns_forward(tmp_path: Path) -> None:
    estimator = fitted(Task.CLASSIFICATION)
    WRITERS["model.pkl"](estimator, tmp_path / "model.pkl")
    assert_served(estimator, tmp_path / "model.pkl", backend="tabpfn")


def test_a_plain_pickle_from_a_gpu_does_not_open_here(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("it would open here")
    WRITERS["cuda.pkl"](fitted(Task.CLASSIFICATION), tmp_path / "cuda.pkl")
    with pytest.raises(RuntimeError, match="CUDA device"):
        pickle.loads((tmp_path / "cuda.pkl").read_bytes())


def test_the_columns_are_those_of_the_table(tmp_path: Path) -> None:
    # a recipe that scales its numbers; one that passes them on tells nothing of where they lay
    recipe = {"PREPROCESS_TRANSFORMS": [PreprocessorConfig("quantile_uni_coarse", categorical_name="ordinal_shuffled")]}
    WRITERS["model.pkl"](fitted(Task.CLASSIFICATION, inference_config=recipe), tmp_path / "model.pkl")
    definition = imported(tmp_path / "model.pkl", tmp_path / "made")
    kinds = {column.name: column.kind for column in definition.context.columns}
    assert list(kinds) == list(table().columns)
    assert [name for name, kind in kinds.items() if kind is ColumnKind.CATEGORY] == ["country"]
    assert definition.context.num_rows == 60
    assert definition.example is not None
    assert definition.example["country"] in ("DE", "FR", "NL")
    assert 5 < float(definition.example["amount"] or 0) < 100, "it lies where the context's numbers did"
    context = engine().fit(definition)
    assert context.classes == ("0", "1")
    served(engine(), context, [definition.example])
    fitted_message, context_rows = describe_context(0, context)
    crossed = wire.FITTED.decode(msgspec.msgpack.encode(fitted_message))
    assert isinstance(crossed, Fitted)
    handle = make_handle(crossed, context.columns, context_rows)
    assert (handle.classes, handle.num_outputs, handle.backend) == (context.classes, 2, context.backend)
    rows = handle.encode(QueryTable.from_records([definition.example]))
    np.testing.assert_array_equal(rows, context.encode(QueryTable.from_records([definition.example])))


def test_arrays_without_names_and_labels_of_any_kind(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(60, 3))
    rows[::7, 1] = np.nan
    rows[:, 2] = rng.integers(0, 4, 60)
    estimator = fitted(Task.CLASSIFICATION, categorical_features_indices=[2])
    for labels, names in (([2.0, 10.0], ("2", "10")), ([False, True], ("0", "1")), (["no", "yes"], ("no", "yes"))):
        estimator.fit(rows, np.array(labels)[(rows[:, 0] > 0).astype(int)])
        WRITERS["model.pkl"](estimator, tmp_path / "model.pkl")
        using = engine()
        context = using.fit(imported(tmp_path / "model.pkl", tmp_path / "made"))
        assert [column.name for column in context.columns] == ["f0", "f1", "f2"]
        assert context.classes == names
        posted = [{"f0": a, "f1": None if np.isnan(b) else b, "f2": c} for a, b, c in rows[:9].tolist()]
        np.testing.assert_allclose(served(using, context, posted), answers(estimator, rows[:9]), atol=1e-5)


@pytest.mark.parametrize("fit_mode", FIT_MODES)
def test_a_cache_from_another_kind_of_device_is_refused_where_it_answers_wrongly(tmp_path: Path, fit_mode: str) -> None:
    """v2 draws its column embeddings on the device: a GPU's cache would be silently wrong on a CPU."""
    checkpoint = write_tiny("tabpfn_v2", tmp_path / "tiny-v2.safetensors", Task.CLASSIFICATION)
    WRITERS["cuda.pkl"](fitted(Task.CLASSIFICATION, checkpoint, fit_mode), tmp_path / "cuda.pkl")
    definition = imported(tmp_path / "cuda.pkl", tmp_path / "made")
    if fit_mode == "fit_with_cache":
        with pytest.raises(InvalidModel, match="KV caches were built on cuda"):
            engine().fit(definition)
    else:
        engine().fit(definition)


def test_an_archive_that_does_not_tell_its_device_is_refused_where_it_matters(tmp_path: Path) -> None:
    checkpoint = write_tiny("tabpfn_v2", tmp_path / "tiny-v2.safetensors", Task.CLASSIFICATION)
    for device, is_served in (("cpu", True), ("auto", False)):
        estimator = fitted(Task.CLASSIFICATION, checkpoint)
        estimator.device = device
        WRITERS["model.tabpfn_fit"](estimator, tmp_path / f"{device}.tabpfn_fit")
        definition = imported(tmp_path / f"{device}.tabpfn_fit", tmp_path / device)
        if is_served:
            engine().fit(definition)
        else:
            with pytest.raises(InvalidModel, match="on a device that its file does not state"):
                engine().fit(definition)


def test_the_child_has_no_network() -> None:
    """Wherever the system lets a process make a network namespace of its own."""
    code = """
import socket, sys
from serve.engine.estimators.sandbox import give_up_network
with socket.create_server(("127.0.0.1", 0)) as server:
    address = server.getsockname()
    socket.create_connection(address, timeout=5).close()
    if not give_up_network():
        sys.exit(2)
    try:
        socket.create_connection(address, timeout=5)
    except OSError:
        sys.exit(0)
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=120)
    if ended.returncode == 2:
        pytest.skip("not permitted here")
    assert ended.returncode == 0


def _unfitted(path: Path) -> None:
    estimator = fitted(Task.CLASSIFICATION)
    del estimator.executor_
    path.write_bytes(pickle.dumps(estimator))


def _of_another_release(path: Path) -> None:
    estimator = fitted(Task.CLASSIFICATION)
    del estimator.date_transformer_
    path.write_bytes(pickle.dumps(estimator))


def _naming_what_is_gone(path: Path) -> None:
    path.write_bytes(b"ctabpfn.classifier\nTabPFNClassifierOfOld\n.")


def _weights_elsewhere(path: Path) -> None:
    estimator = fitted(Task.CLASSIFICATION)
    estimator.model_path = "/home/somebody/tabpfn.ckpt"
    archive = path.with_suffix(".tabpfn_fit")
    WRITERS["model.tabpfn_fit"](estimator, archive)
    archive.rename(path)


def _constant(path: Path) -> None:
    estimator = fitted(Task.REGRESSION)
    estimator.fit(table(), np.ones(60))
    path.write_bytes(pickle.dumps(estimator))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"no pickle at all"), "not a readable pickle"),
        (lambda path: path.write_bytes(b""), "not a readable pickle"),
        (lambda path: path.write_bytes(pickle.dumps(fitted(Task.CLASSIFICATION))[:-1000]), "not a readable pickle"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "it holds a dict"),
        (lambda path: torch.save({"a": 1}, path), "not a .tabpfn_fit archive of tabpfn"),
        (_unfitted, "not fitted"),
        (_of_another_release, "another release of tabpfn fitted it: it has no date_transformer_"),
        (_naming_what_is_gone, "another release of tabpfn or scikit-learn made it"),
        (_weights_elsewhere, "'/home/somebody/tabpfn.ckpt', is not a file here"),
        (_constant, "a single value"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(tmp_path: Path, write: Any, message: str) -> None:
    write(tmp_path / "file")
    said = outcome(tmp_path / "file", tmp_path / "made")
    assert message in said["error"]
    assert "\n" not in said["error"]


def test_the_demo_checkpoint_is_known_by_its_weights(tmp_path: Path) -> None:
    WRITERS["model.pkl"](fitted(Task.CLASSIFICATION), tmp_path / "demo.pkl")
    assert outcome(tmp_path / "demo.pkl", tmp_path / "made")["facts"]["is_known_checkpoint"]
    checkpoint = write_tiny("tabpfn_v3_5", tmp_path / "tiny-v3.5.safetensors", Task.CLASSIFICATION)
    WRITERS["model.pkl"](fitted(Task.CLASSIFICATION, checkpoint), tmp_path / "tiny.pkl")
    assert not outcome(tmp_path / "tiny.pkl", tmp_path / "made")["facts"]["is_known_checkpoint"]
    assert DEMO.is_file()


def test_the_replicas_own_process_opens_no_estimator(tmp_path: Path) -> None:
    WRITERS["model.pkl"](fitted(Task.CLASSIFICATION), tmp_path / "model.pkl")
    definition = imported(tmp_path / "model.pkl", tmp_path / "made")
    with pytest.raises(InvalidModel, match=r"set engine\.worker_process to true"):
        engine(worker_process=False).fit(definition)
