"""Caches restored from a file: answers equal to the last bit, no network run; anything not quite right is rebuilt."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tabpfn.architectures
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import definition, write_random_checkpoint
from safetensors import safe_open
from safetensors.torch import save_file
from tabpfn.architectures.kv_cache import KVCacheEntry, QuantizedKVCacheEntry
from tabpfn.architectures.shared.bar_distribution import FullSupportBarDistribution
from tabpfn.architectures.tabpfn_v2 import TabPFNV2Cache
from tabpfn.architectures.tabpfn_v3_5 import TabPFNV3p5Cache
from tabpfn.checkpoint import save_as_safetensors
from tabpfn.classifier import TabPFNClassifier
from tabpfn.inference import InferenceEngineExplicitKVCache
from tabpfn.regressor import TabPFNRegressor

from serve.core import ModelDefinition, QueryTable, Task, files
from serve.engine import cached_fit, cleaning, kv_file, tabpfn_estimators, tensor_file
from serve.engine.kv_file import Caches
from serve.engine.row_encoder import RowEncoder

FINGERPRINT = {"checkpoint": "c", "torch": "t"}
KINDS = [("v3.5", Task.CLASSIFICATION), ("v3.5", Task.REGRESSION), ("v2", Task.CLASSIFICATION), ("v2", Task.REGRESSION)]


def write_tiny_v2(path: Path, task: Task) -> Path:
    """A v2 network of random weights, with the preprocessing of the released one (SVD, fingerprint and all)."""
    torch.manual_seed(0)
    outputs = {"max_num_classes": 10} if task is Task.CLASSIFICATION else {"max_num_classes": 0, "num_buckets": 50}
    architecture: Any = tabpfn.architectures.ARCHITECTURES["tabpfn_v2"]
    config, _ = architecture.parse_config({"emsize": 32, "nlayers": 2, "nhead": 2, **outputs})
    network = architecture.get_architecture(config)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.2)
    state = network.state_dict()
    if task is Task.REGRESSION:
        bars = FullSupportBarDistribution(torch.linspace(-4, 4, 51))
        state |= {f"criterion.{name}": value for name, value in bars.state_dict().items()}
    save_as_safetensors({"state_dict": state, "config": dataclasses.asdict(config)}, path)
    return path


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Task], ModelDefinition]:
    folder = tmp_path_factory.mktemp("checkpoints")
    v35 = write_random_checkpoint(folder / "tiny-v3.5.safetensors")
    paths = {"v3.5": lambda _: v35, "v2": lambda task: write_tiny_v2(folder / f"v2-{task}.safetensors", task)}
    return {(kind, task): definition(paths[kind](task), task, num_rows=60) for kind, task in KINDS}


def fit(model: ModelDefinition, path: Path) -> Any:
    context = model.context
    records = [{c.name: context.cells[c.name][row] for c in context.columns} for row in range(context.num_rows)]
    frame = cleaning.context_frame(model, RowEncoder(context.columns).read(QueryTable.from_records(records)))
    estimator = cached_fit.build_with_file(model, frame, "cpu", "float32", path)
    return estimator, tabpfn_estimators.predict_outputs(estimator, frame)


@pytest.fixture(scope="module")
def fresh(
    definitions: dict[tuple[str, Task], ModelDefinition], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """(estimator, answers, file) of a kind, built once by a build that ran the network."""
    made: dict[Any, Any] = {}

    def make(key: tuple[str, Task]) -> Any:
        if key not in made:
            path = tmp_path_factory.mktemp("caches") / "kv.safetensors"
            made[key] = (*fit(definitions[key], path), path)
        return made[key]

    return make


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks that ran to build caches during a test, one entry per forward."""
    ran: list[str] = []
    for module in (tabpfn.architectures.tabpfn_v2.TabPFNV2, tabpfn.architectures.tabpfn_v3_5.TabPFNV3p5):
        forward = module.forward

        @functools.wraps(forward)
        def counted(self: Any, *args: Any, _forward: Any = forward, **options: Any) -> Any:
            if options.get("return_kv_cache"):
                ran.append(type(self).__name__)
            return _forward(self, *args, **options)

        monkeypatch.setattr(module, "forward", counted)
    return ran


def same(left: Any, right: Any) -> bool:
    """Equal to the last bit, types, dtypes, shapes and layout included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        alike = left.dtype == right.dtype and left.shape == right.shape and left.stride() == right.stride()
        return alike and kv_file.digest_tensors(left) == kv_file.digest_tensors(right)
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@pytest.mark.parametrize("key", KINDS)
def test_a_restored_estimator_is_a_fresh_one_to_the_last_bit(
    key: Any, definitions: Any, fresh: Any, networks: list[str]
) -> None:
    built, answers, path = fresh(key)
    ran_before = len(networks)
    written = path.stat().st_ino
    restored, again = fit(definitions[key], path)

    assert len(networks) == ran_before
    assert path.stat().st_ino == written  # not written anew
    assert np.array_equal(again, answers)
    assert type(restored) in (TabPFNClassifier, TabPFNRegressor)
    executor = restored.executor_
    assert type(executor) is InferenceEngineExplicitKVCache
    assert executor.cache_groups == built.executor_.cache_groups
    assert same(executor.kv_caches, built.executor_.kv_caches)
    assert same(vars(executor).keys(), vars(built.executor_).keys())
    assert "forward" not in vars(restored.models_[0])
    assert "_initialize_model_variables" not in vars(restored)


def test_a_member_built_in_several_forwards_is_restored_too(
    definitions: Any, tmp_path: Path, networks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tabpfn.settings import settings as tabpfn_settings

    monkeypatch.setattr(tabpfn_settings.tabpfn, "max_batched_estimator_rows", 130)  # two members of 60 rows at a time
    model = definitions["v3.5", Task.CLASSIFICATION]
    built, answers = fit(model, tmp_path / "kv")
    assert len(networks) > len(built.executor_.kv_caches)
    networks.clear()
    _, again = fit(model, tmp_path / "kv")
    assert networks == []
    assert np.array_equal(again, answers)


def rebuilt(
    model: ModelDefinition, path: Path, networks: list[str], caplog: pytest.LogCaptureFixture
) -> tuple[Any, str]:
    """Fit with a bad file: answers, and the one line that says why it was not used. The file is good afterwards."""
    networks.clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING, kv_file.__name__.rpartition(".")[0]):
        _, answers = fit(model, path)
    assert networks
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    networks.clear()
    fit(model, path)
    assert networks == []
    return answers, record.getMessage()


def test_the_file_of_another_context_seed_weights_or_release_is_not_used(
    definitions: Any, fresh: Any, tmp_path: Path, networks: list[str], caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = definitions["v3.5", Task.CLASSIFICATION]
    _, answers, good = fresh(("v3.5", Task.CLASSIFICATION))
    cells = {name: list(column) for name, column in model.context.cells.items()}
    cells["amount"][7] = 3.5
    weights = tmp_path / "v3.5-other.safetensors"
    write_random_checkpoint(weights, seed=1)
    others = {
        "context": dataclasses.replace(model, context=dataclasses.replace(model.context, cells=cells)),
        "ensemble options": dataclasses.replace(model, options=dataclasses.replace(model.options, random_state=1)),
        "checkpoint": dataclasses.replace(model, checkpoint_path=str(weights)),
    }
    for part, other in others.items():
        path = tmp_path / f"{part}.kv"
        shutil.copy(good, path)
        changed, reason = rebuilt(other, path, networks, caplog)
        assert reason.endswith(f"it was made with another {part}")
        assert np.array_equal(changed, fit(other, tmp_path / f"{part}.clean")[1])
        assert not np.array_equal(changed, answers)
    shutil.copy(good, tmp_path / "kv")
    monkeypatch.setattr(kv_file, "version", lambda _: "0.0")
    _, reason = rebuilt(model, tmp_path / "kv", networks, caplog)
    assert reason.endswith("it was made with another tabpfn")


def test_caches_of_other_preprocessed_rows_are_found_out_behind_an_equal_fingerprint(
    definitions: Any, fresh: Any, tmp_path: Path, networks: list[str], caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another release of a numerical package had changed the sign of an SVD, which no fingerprint shows."""
    monkeypatch.setattr(kv_file, "fingerprint_of", lambda *_: FINGERPRINT)
    model = definitions["v3.5", Task.CLASSIFICATION]
    seeded = dataclasses.replace(model, options=dataclasses.replace(model.options, random_state=5))
    fit(seeded, tmp_path / "kv")
    answers, reason = rebuilt(model, tmp_path / "kv", networks, caplog)
    assert reason.endswith("its caches were built from other preprocessed rows than this fit's")
    assert np.array_equal(answers, fresh(("v3.5", Task.CLASSIFICATION))[1])

    fewer = dataclasses.replace(model, options=dataclasses.replace(model.options, num_members=2))
    fit(fewer, tmp_path / "kv")
    _, reason = rebuilt(model, tmp_path / "kv", networks, caplog)
    assert "is not used" in reason

    read = kv_file.load(tmp_path / "kv", FINGERPRINT, "cpu")
    assert read is not None
    kv_file.save(tmp_path / "kv", dataclasses.replace(read, inputs=[*read.inputs, "one more"]), FINGERPRINT)
    _, reason = rebuilt(model, tmp_path / "kv", networks, caplog)
    assert reason.endswith("this fit has other members")


def test_a_damaged_file_is_rebuilt_to_the_same_answers(
    definitions: Any, fresh: Any, tmp_path: Path, networks: list[str], caplog: Any
) -> None:
    model = definitions["v2", Task.CLASSIFICATION]
    _, answers, good = fresh(("v2", Task.CLASSIFICATION))
    data = bytearray(good.read_bytes())
    data[-100] ^= 1
    path = tmp_path / "kv"
    path.write_bytes(data)
    again, reason = rebuilt(model, path, networks, caplog)
    assert "it is damaged: the digest of tensor" in reason
    assert np.array_equal(again, answers)
    assert [name for name in os.listdir(tmp_path) if name != "kv"] == []


def test_a_file_that_cannot_be_written_is_no_reason_not_to_start(
    definitions: Any, fresh: Any, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        _, answers = fit(definitions["v3.5", Task.CLASSIFICATION], tmp_path / "file" / "kv")
    assert np.array_equal(answers, fresh(("v3.5", Task.CLASSIFICATION))[1])
    assert "is not written" in caplog.text


def small_caches() -> Caches:
    tied = torch.arange(6.0).reshape(1, 2, 3)
    base = torch.arange(8.0)
    cache = TabPFNV2Cache(
        kv={0: KVCacheEntry(key=tied, value=tied, grid_dtype=torch.float16), 3: KVCacheEntry()},
        feature_cache={"mask": torch.tensor([True, False]), "empty": torch.empty(0, 2), "count": torch.tensor(3)},
        test_y_embedding=base[2:4],
        train_shape=(1, 2),
    )
    quantised = QuantizedKVCacheEntry(
        key=torch.ones(2, 2, dtype=torch.int8),
        value=torch.ones(2, 2).to(torch.float8_e4m3fn),
        key_scale=torch.tensor(0.5, dtype=torch.bfloat16),
        value_scale=torch.ones(2, 1, dtype=torch.float16),
    )
    other = TabPFNV3p5Cache(kv={1: quantised}, inducing_hidden=[base, base[:4], base.reshape(2, 4)])
    return Caches([cache, other], [[1, 0], [2]], ["a", "b"])


def test_every_kind_of_content_comes_back_and_tied_tensors_stay_tied(tmp_path: Path) -> None:
    written = small_caches()
    kv_file.save(tmp_path / "kv", written, FINGERPRINT)
    read = kv_file.load(tmp_path / "kv", FINGERPRINT, "cpu")
    assert read is not None
    assert same(list(read.caches), list(written.caches))
    assert (read.groups, read.inputs) == (written.groups, written.inputs)
    entry: Any = read.caches[0].kv[0]
    assert entry.key is entry.value
    with safe_open(tmp_path / "kv", "pt") as file:  # a plain safetensors file, one name per path
        assert "0.kv.0.key" in file.keys()  # noqa: SIM118
        assert "0.kv.0.value" not in file.keys()  # noqa: SIM118
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o600


def test_no_file_yet_is_no_warning(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        assert kv_file.load(tmp_path / "kv", FINGERPRINT, "cpu") is None
    assert caplog.records == []


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "kv"
    kv_file.save(path, small_caches(), FINGERPRINT)
    return path.read_bytes()


def load_bytes(path: Path, data: bytes) -> Caches | None:
    path.write_bytes(data)
    return kv_file.load(path, FINGERPRINT, "cpu")


@pytest.fixture
def is_refused(tmp_path: Path) -> Callable[[bytes], bool]:
    return lambda data: load_bytes(tmp_path / "kv", data) is None


def test_a_flipped_bit_anywhere_is_refused(good_bytes: bytes, is_refused: Callable[[bytes], bool]) -> None:
    start = 8 + int.from_bytes(good_bytes[:8], "little")
    end = len(good_bytes[:start].rstrip())  # blanks between them mean nothing
    for place in [*range(8), *range(8, end, 11), *range(start, len(good_bytes), 3)]:
        data = bytearray(good_bytes)
        data[place] ^= 1 << place % 8
        assert is_refused(bytes(data)), f"byte {place} of {len(good_bytes)}"


def test_a_truncation_anywhere_and_an_extension_are_refused(good_bytes: bytes, is_refused: Any) -> None:
    for length in [*range(10), *range(10, len(good_bytes), 29), len(good_bytes) - 1]:
        assert is_refused(good_bytes[:length]), length
    assert is_refused(good_bytes + b"\0" * 8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_is_refused_or_harmless(good_bytes: bytes, tmp_path: Path, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(good_bytes) - 1))
    patch = data.draw(st.binary(max_size=40))
    cut = data.draw(st.integers(0, 40))
    read = load_bytes(tmp_path / "kv", good_bytes[:start] + patch + good_bytes[start + cut :])
    assert read is None or same(list(read.caches), list(small_caches().caches))


def rewrite(path: Path, tensors: dict[str, torch.Tensor], body: dict[str, Any], **metadata: str) -> None:
    text = json.dumps(body)
    digest = kv_file._digest(text)
    save_file(tensors, path, {"format": kv_file.FORMAT, "body": text, "body_sha256": digest, **metadata})


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (lambda body: body["structure"]["list"][0].update({"class": "Popen"}), "unknown to this release: Popen"),
        (lambda body: body["structure"]["list"][0]["fields"].popitem(), "unknown to this release: TabPFNV2Cache"),
        (lambda body: body["tensors"].popitem(), "its tensors are not the ones described"),
        (lambda body: body["tensors"]["0.kv.0.key"].__setitem__(2, "00"), "the digest of tensor 0.kv.0.key differs"),
        (lambda body: body["fingerprint"].update(torch="u"), "made with another torch"),
    ],
)
def test_a_description_forged_with_a_valid_digest_builds_no_other_class(
    good_bytes: bytes, tmp_path: Path, caplog: Any, tamper: Callable[[Any], Any], reason: str
) -> None:
    path = tmp_path / "kv"
    path.write_bytes(good_bytes)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        body = json.loads(file.metadata()["body"])
    tamper(body)
    rewrite(path, tensors, body)
    assert kv_file.load(path, FINGERPRINT, "cpu") is None
    assert reason in caplog.text


def test_another_format_is_refused_by_name(tmp_path: Path, caplog: Any) -> None:
    rewrite(tmp_path / "kv", {"a": torch.ones(1)}, {}, format="tabpfn-serve kv caches, 2")
    assert kv_file.load(tmp_path / "kv", FINGERPRINT, "cpu") is None
    assert "its format is 'tabpfn-serve kv caches, 2'" in caplog.text


def test_a_cache_of_an_unknown_class_is_not_written(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Unknown:
        kv: Sequence[int] = ()

    caches: Any = [Unknown()]
    with pytest.raises(TypeError, match="cannot hold a value of type Unknown"):
        kv_file.save(tmp_path / "kv", Caches(caches, [[0]], ["a"]), FINGERPRINT)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["folder", "pipe", "link to a device", "link to nothing", "sparse", "empty"])
def test_what_is_no_file_of_ours_is_refused_in_a_line(tmp_path: Path, what: str, caplog: Any) -> None:
    path = tmp_path / "kv"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what.startswith("link"):
        path.symlink_to("/dev/zero" if what == "link to a device" else "/absent")
    else:
        path.write_bytes(b"" if what == "empty" else (2**40 - 8).to_bytes(8, "little"))
        os.truncate(path, 0 if what == "empty" else 2**40)
    with caplog.at_level(logging.INFO):
        assert kv_file.load(path, FINGERPRINT, "cpu") is None
    (record,) = caplog.records
    assert record.exc_info is None
    assert "\n" not in record.getMessage()


def test_a_file_with_fewer_caches_than_groups_is_built_again(
    definitions: Any, fresh: Any, tmp_path: Path, networks: list[str], caplog: Any
) -> None:
    key = ("v2", Task.CLASSIFICATION)
    estimator, answers, good = fresh(key)
    fingerprint = kv_file.fingerprint_of(definitions[key], estimator.get_params(), "cpu")
    read = kv_file.load(good, fingerprint, "cpu")
    assert read is not None
    kv_file.save(tmp_path / "kv", dataclasses.replace(read, caches=read.caches[:-1]), fingerprint)
    again, reason = rebuilt(definitions[key], tmp_path / "kv", networks, caplog)
    assert reason.endswith(f"it holds {len(read.caches) - 1} caches for {len(read.groups)} groups of members")
    assert np.array_equal(again, answers)


def test_an_unfinished_file_has_one_name_that_a_sweep_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors' own writer made a second one, which stayed for ever when its process was killed."""
    names: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", lambda _: names.append(sorted(os.listdir(tmp_path))))
    held = tensor_file.write_tensors

    def write(*arguments: Any) -> None:
        held(*arguments)
        names.append(sorted(os.listdir(tmp_path)))
        assert files.sweep(tmp_path) == []

    monkeypatch.setattr(kv_file, "write_tensors", write)
    kv_file.save(tmp_path / "kv", small_caches(), FINGERPRINT)
    (during,), before, after = names
    assert before == [during]
    assert after == ["kv"]
    (tmp_path / during).touch()
    assert files.sweep(tmp_path) == [tmp_path / during]
