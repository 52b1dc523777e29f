"""A pickle is opened only with its pinned digest, only by a child, and becomes a whole model folder or none."""

import argparse
import hashlib
import io
import json
import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from estimators import DEMO, answers, fitted, query, records

from serve.cli import import_command as importing
from serve.core import Batch, ModelDefinition, QueryTable, Task
from serve.core.errors import InvalidModel
from serve.engine.engine import TabPFNEngine
from serve.engine.estimators import unpickling
from serve.settings import EngineSettings, StoreSettings
from serve.store import FolderStore
from serve.store.folder import read_manifest, read_model
from serve.store.pickles import import_pickle

FACTS = {
    "task": "classification",
    "columns": [{"name": "target", "kind": "number"}],
    "example": {"target": 1.5},
    "num_context_rows": 60,
    "num_members": 2,
    "has_kv_caches": True,
    "architecture": "TabPFNV3",
    "is_known_checkpoint": False,
    "warnings": [],
}


def child(code: str) -> tuple[str, ...]:
    """Arguments of Python that stand for the sandbox; `folder` is the folder that the code writes into."""
    return ("-c", f"import os, sys, pathlib, json, time; folder = pathlib.Path(sys.argv[2])\n{code}")


def writes(outcome: Any) -> str:
    return "\n".join(
        [
            "(folder / 'checkpoint.safetensors').write_bytes(b'weights')",
            "(folder / 'estimator.pickle').write_bytes(pathlib.Path(sys.argv[1]).read_bytes())",
            f"(folder / 'outcome.json').write_text({json.dumps(outcome)!r})",
        ]
    )


def linked(name: str) -> str:
    """Code that writes a good outcome, and then a link to an endless file in place of one file."""
    path = f"(folder / {name!r})"
    return f"{writes({'facts': FACTS})}\n{path}.unlink()\n{path}.symlink_to('/dev/zero')"


GOOD = child(writes({"facts": FACTS}))
NEVER = child("raise SystemExit('this import was not to be')")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tabpfn_model.pkl"
    path.write_bytes(b"some pickle")
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bring(path: Path, work_dir: Path, **options: Any) -> Path:
    return import_pickle(path, **{"name": "cards", "sha256": digest(path), "work_dir": work_dir, **options})


def load(work_dir: Path, *, allow_non_commercial: bool = False) -> ModelDefinition:
    folder = work_dir / "cards" / "1"
    return read_model(folder, read_manifest(folder), allow_non_commercial=allow_non_commercial)


class Payload:
    """An object whose pickle is a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


EXIT = b"cposix\n_exit\n(I0\ntR."
"""The pickle of a call of os._exit(0), written out: while coverage is measured, os._exit is not the system's."""


def test_a_fitted_estimator_becomes_a_model_that_is_served(tmp_path: Path) -> None:
    estimator = fitted(Task.CLASSIFICATION, fit_mode="fit_preprocessors")
    file = tmp_path / "tabpfn_model.pkl"
    file.write_bytes(pickle.dumps(estimator))
    folder = bring(file, tmp_path / "models")
    assert folder == tmp_path / "models" / "cards" / "1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.safetensors",
        "estimator.pickle",
        "manifest.json",
    ]
    definition = load(tmp_path / "models")
    assert definition.licence == "Apache-2.0", "the demo checkpoint is known by its weights"
    assert definition.options.num_members == 4, "of the estimator, not the default"
    assert definition.context.num_rows == 60
    engine = TabPFNEngine(EngineSettings(), max_batch_rows=16)
    context = engine.fit(definition)
    got = engine.predict(
        Batch(context, context.encode(QueryTable.from_records([*records(query()), definition.example])))
    )
    np.testing.assert_allclose(got[:-1], answers(estimator, query()), atol=1e-5)


def test_a_repository_does_not_serve_it_unpinned(tmp_path: Path, file: Path) -> None:
    folder = bring(file, tmp_path / "models", child=GOOD)
    store = FolderStore(StoreSettings(model_repository=tmp_path / "models", allow_non_commercial=True))
    assert store.names() == ["cards"]
    with pytest.raises(InvalidModel, match=rf"add cards={folder}@sha256:DIGEST to store.models"):
        store.load("cards")


def test_weights_of_unknown_licence_need_the_operators_consent(tmp_path: Path, file: Path) -> None:
    bring(file, tmp_path / "v3", child=GOOD)
    with pytest.raises(InvalidModel, match=r"TabPFNV3 of a pickle.*unknown.*allow_non_commercial"):
        load(tmp_path / "v3")
    assert load(tmp_path / "v3", allow_non_commercial=True).licence.startswith("unknown")
    bring(file, tmp_path / "v2", child=child(writes({"facts": {**FACTS, "architecture": "TabPFNV2"}})))
    assert load(tmp_path / "v2").licence.startswith("unknown")


def test_a_wrong_digest_is_never_opened(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    file = tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps(Payload(os.mkdir, str(trace))))
    started = child(f"pathlib.Path({str(trace)!r}).mkdir()")
    with pytest.raises(InvalidModel, match=rf"bad.pkl: the file has sha256 {digest(file)}, but {'0' * 64} is pinned"):
        bring(file, tmp_path / "models", sha256="0" * 64, child=started)
    assert not trace.exists()
    assert not (tmp_path / "models" / "cards").exists()
    pickle.loads(file.read_bytes())
    assert trace.exists(), "opened, it would have run"


def _nested(payload: bytes) -> dict[str, bytes]:
    """The payload in the places where joblib and tabpfn keep pickles inside pickles."""
    objects, archive = io.BytesIO(), io.BytesIO()
    joblib.dump(np.array([1], dtype=object), objects)
    inner = pickle.dumps(np.array([1], dtype=object), protocol=5)
    at = objects.getvalue().rindex(inner)
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("init_params.json", json.dumps({"model_path": str(DEMO), "__class_name__": "TabPFNClassifier"}))
        writer.writestr("fitted_attrs.joblib", payload)
        writer.writestr("executor_state.joblib", payload)
    return {
        "plain": payload,
        "in an array of objects": objects.getvalue()[:at] + payload + objects.getvalue()[at + len(inner) :],
        "in an archive": archive.getvalue(),
        "in a storage": b"ctorch.storage\n_load_from_bytes\nB"
        + len(payload).to_bytes(4, "little")
        + payload
        + b"\x85R.",
    }


@pytest.mark.parametrize("place", ["plain", "in an array of objects", "in an archive", "in a storage"])
def test_no_code_in_a_pickle_is_run(tmp_path: Path, place: str) -> None:
    """Even with the right digest, a pickle may name the parts of an estimator only."""
    trace = tmp_path / "trace"
    file = tmp_path / "bad.pkl"
    file.write_bytes(_nested(pickle.dumps(Payload(os.mkdir, str(trace)), protocol=2))[place])
    with pytest.raises(InvalidModel, match=r"posix.mkdir|not a readable pickle"):
        unpickling.open_estimator_file(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    "payload",
    [
        EXIT,
        Payload(time.sleep, 3_600),
        Payload(exec, "raise SystemExit(0)"),
        Payload(getattr, "text", "upper"),
        Payload(joblib.load, "/etc/passwd"),
        Payload(np.load, "/etc/passwd"),
    ],
)
def test_no_other_function_may_be_named(tmp_path: Path, payload: Payload | bytes) -> None:
    (tmp_path / "bad.pkl").write_bytes(payload if isinstance(payload, bytes) else pickle.dumps(payload))
    with pytest.raises(InvalidModel, match="which is no part of a fitted TabPFN estimator"):
        unpickling.open_estimator_file(tmp_path / "bad.pkl")


def test_names_that_a_module_only_imported_are_not_its_own() -> None:
    for module, name in (
        ("tabpfn.inference", "joblib"), ("tabpfn.inference", "Path.unlink"), ("tabpfn.classifier", "load_model"),
        ("sklearn.base", "os"), ("torch", "load"), ("torch.nn.modules.module", "torch"), ("numpy", "fromfile"),
        ("numpy._core._methods", "os"), ("tabpfn.inference_evil", "X"),
    ):  # fmt: skip
        with pytest.raises((pickle.UnpicklingError, AttributeError, ModuleNotFoundError)):
            unpickling.find_admitted(module, name)


def test_the_real_child_reports_the_fault(tmp_path: Path) -> None:
    file = tmp_path / "bad.pkl"
    file.write_bytes(EXIT)
    with pytest.raises(InvalidModel, match=r"bad.pkl: it is not opened: it names posix._exit"):
        bring(file, tmp_path / "models")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os._exit(0)", "exit code 0 and no reason"),
        ("os._exit(3)", "exit code 3 and no reason"),
        ("raise RuntimeError", "exit code 1 and no reason"),
        ("os.kill(os.getpid(), 9)", "ended by SIGKILL; was memory short"),
        ("os.abort()", "ended by SIGABRT"),
        ("time.sleep(3600)", "took more than 1 s and was stopped"),
        (writes({"error": "two\nlines " + "x" * 10_000}), "two lines x"),
        (writes({"facts": {**FACTS, "columns": [{"name": "", "kind": "number"}]}}), "no reason"),
        (writes({"facts": {**FACTS, "example": {}}}), "makes no valid manifest"),
        ("(folder / 'outcome.json').write_text('{')", "no reason"),
        (f"(folder / 'outcome.json').write_text({json.dumps({'facts': FACTS})!r})", "cannot be imported: No such file"),
        ("os.mkfifo(folder / 'outcome.json')", "outcome.json, which is not a regular file"),
        ("(folder / 'outcome.json').symlink_to('/dev/zero')", "outcome.json, which is not a regular file"),
        (linked("estimator.pickle"), "estimator.pickle, which is not a regular file"),
        (linked("checkpoint.safetensors"), "checkpoint.safetensors, which is not a regular file"),
    ],
)
def test_a_child_that_fails_leaves_one_line_and_nothing_else(
    tmp_path: Path, file: Path, code: str, message: str
) -> None:
    timeout_s = 1.0 if "sleep" in code else 60.0
    with pytest.raises(InvalidModel) as refused:
        bring(file, tmp_path / "models", child=child(code), timeout_s=timeout_s)
    line = str(refused.value)
    assert line.startswith(f"{file}: ") or message.startswith("cannot be imported")
    assert message in line
    assert "\n" not in line
    assert len(line) < 1_000
    assert [path for path in (tmp_path / "models").rglob("*") if path.suffix != ".lock"] == [
        tmp_path / "models" / ".importing"
    ]


def test_what_the_child_wrote_is_never_unpickled_by_its_parent(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    file = tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps(Payload(os.mkdir, str(trace))))
    folder = bring(file, tmp_path / "models", child=GOOD)  # this child writes the file as if it were an estimator
    definition = load(tmp_path / "models", allow_non_commercial=True)
    assert definition.estimator_path == str(folder / "estimator.pickle")
    assert Path(definition.estimator_path).read_bytes() == file.read_bytes()
    assert not trace.exists()


def test_processes_that_the_child_started_end_with_it(tmp_path: Path, file: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"""
import subprocess
pathlib.Path({str(pid_file)!r}).write_text(str(subprocess.Popen(['sleep', '1000']).pid))
"""
    bring(file, tmp_path / "models", child=child(code + writes({"facts": FACTS})))
    status = Path(f"/proc/{pid_file.read_text()}/status")
    for _ in range(200):  # a killed process ends when it is scheduled
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail("the process is still running")


def test_the_child_gets_no_secret(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    seen = tmp_path / "seen.json"
    code = f"pathlib.Path({str(seen)!r}).write_text(json.dumps(dict(os.environ)))\n" + writes({"facts": FACTS})
    bring(file, tmp_path / "models", child=child(code))
    environment = json.loads(seen.read_text())
    assert not {"AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY"} & environment.keys()
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_a_folder_that_was_made_of_the_same_file_is_used_again(tmp_path: Path, file: Path) -> None:
    models = tmp_path / "models"
    folder = bring(file, models, child=GOOD)
    assert bring(file, models, child=NEVER, sha256=digest(file).upper()) == folder
    file.unlink()  # the folder is enough
    assert import_pickle(file, name="cards", sha256=_source(folder), work_dir=models, child=NEVER) == folder


def _source(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["estimator"]["source_sha256"])


@pytest.mark.parametrize("harm", ["estimator.pickle", "checkpoint.safetensors", "manifest.json", "gone", "releases"])
def test_a_damaged_or_half_made_folder_is_made_anew(tmp_path: Path, file: Path, harm: str) -> None:
    models = tmp_path / "models"
    folder = bring(file, models, child=GOOD)
    if harm == "gone":
        (folder / "manifest.json").unlink()
    elif harm == "releases":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["estimator"]["made_by"] = "tabpfn 8"
        (folder / "manifest.json").write_text(json.dumps(manifest))
    else:
        (folder / harm).write_bytes(b"harm")
    left = models / ".importing" / "cards" / "made"  # of an import that was killed
    left.mkdir(parents=True)
    (left / "manifest.json").write_text("{")
    assert bring(file, models, child=GOOD) == folder
    assert load(models, allow_non_commercial=True).name == "cards"
    assert not left.exists()


def test_another_file_takes_the_place_of_the_first(tmp_path: Path, file: Path) -> None:
    folder = bring(file, tmp_path / "models", child=GOOD)
    file.write_bytes(b"another pickle")
    assert bring(file, tmp_path / "models", child=GOOD) == folder
    assert (folder / "estimator.pickle").read_bytes() == b"another pickle"


def test_a_failed_import_leaves_the_model_that_was_there(tmp_path: Path, file: Path) -> None:
    folder = bring(file, tmp_path / "models", child=GOOD)
    before = (folder / "manifest.json").read_bytes()
    file.write_bytes(b"another pickle")
    with pytest.raises(InvalidModel):
        bring(file, tmp_path / "models", child=NEVER)
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../cards"}, "is not a name for a model"),
        ({"sha256": "abc"}, "is not a SHA-256"),
        ({"work_dir": Path("/proc/nowhere")}, "cannot be imported"),
    ],
)
def test_wrong_arguments(tmp_path: Path, file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        bring(file, **{"work_dir": tmp_path / "models", "child": NEVER, **options})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"gone.pkl cannot be imported: No such file"):
        import_pickle(tmp_path / "gone.pkl", name="cards", sha256="0" * 64, work_dir=tmp_path / "models")


def test_the_files_are_for_their_owner_alone(tmp_path: Path, file: Path) -> None:
    folder = bring(file, tmp_path / "models", child=GOOD)
    assert folder.stat().st_mode & 0o077 == 0, "an estimator holds values of the rows it was fitted on"


def test_a_manifest_has_a_context_or_an_estimator(tmp_path: Path, file: Path) -> None:
    folder = bring(file, tmp_path / "models", child=GOOD)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for changes, message in (
        ({"context": manifest["checkpoint"] and {"path": "x", "sha256": "0" * 64}}, "not both"),
        ({"estimator": None}, "not both"),
        ({"options": {"num_members": 4}}, "leave them out for an estimator"),
    ):
        path.write_text(json.dumps({**manifest, **changes}))
        with pytest.raises(InvalidModel, match=message):
            load(tmp_path / "models")
    path.write_text(json.dumps(manifest))
    (folder / "estimator.pickle").write_bytes(b"another")
    with pytest.raises(InvalidModel, match=r"has sha256 \w+, but .*manifest\.json says"):
        load(tmp_path / "models", allow_non_commercial=True)


def test_the_command(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    importing.add_parser(parser.add_subparsers(dest="command"))
    folder = bring(file, tmp_path / "models", child=GOOD)
    options = parser.parse_args(
        ["import", str(file), "--sha256", digest(file), "--name", "cards", "--out", str(tmp_path / "models")]
    )
    importing.run(options)
    said = capsys.readouterr().out
    assert f"--model cards={folder}@sha256:{digest(folder / 'manifest.json')}" in said


def test_what_the_import_found_is_printed_kept_and_logged_at_every_start(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bring(file, tmp_path / "models", child=child(writes({"facts": FACTS | {"notes": ["columns 'a'\ndiffer"]}})))
    parser = argparse.ArgumentParser()
    importing.add_parser(parser.add_subparsers(dest="command"))
    arguments = ["--sha256", digest(file), "--name", "cards", "--out", str(tmp_path / "models")]
    importing.run(parser.parse_args(["import", str(file), *arguments]))
    assert "note: columns 'a' differ\n" in capsys.readouterr().out
    caplog.clear()
    caplog.set_level("WARNING")
    load(tmp_path / "models", allow_non_commercial=True)
    assert "model cards: columns 'a' differ" in caplog.text
