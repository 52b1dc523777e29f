"""`tabpfn-serve up` with a model from a real S3 server, configured as in a container, answers or ends with one line."""

import hashlib
import json
import pickle
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
from edge_harness import WITHOUT_RAY, Server, running
from store.relay import Relay
from store.source_harness import digest, edit
from store.swift_harness import Swift
from tabpfn import TabPFNClassifier

from serve.store.folder import EMBEDDED

UP = ("up", "--port", "0", "--max-batch-rows", "4")  # few row buckets to warm up


@pytest.fixture
def fraud(tmp_path: Path, swift: Swift, bucket: str) -> Path:
    """The demo model as a folder that holds its checkpoint, at `s3://BUCKET/fraud/1`."""
    folder = tmp_path / "fraud" / "1"
    shutil.copytree(EMBEDDED / "fraud" / "1", folder)
    checkpoint = json.loads((folder / "manifest.json").read_text())["checkpoint"]
    weights = folder / Path(checkpoint["path"]).name
    shutil.copyfile(EMBEDDED / "fraud" / "1" / checkpoint["path"], weights)
    edit(folder, checkpoint={**checkpoint, "path": weights.name})
    swift.upload_folder(bucket, "fraud/1", folder)
    return folder


@pytest.fixture
def entry(fraud: Path, relay: Relay, bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The entry of `store.models` in the environment."""
    entry = {"name": "fraud", "uri": f"s3://{bucket}/fraud/1", "sha256": digest(fraud)}
    monkeypatch.setenv("TABPFN_SERVE_STORE_MODELS", json.dumps([entry]))
    monkeypatch.setenv("TABPFN_SERVE_STORE_DOWNLOAD_DIR", str(cache))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", relay.endpoint)
    return entry


def prediction(server: Server, model: str = "fraud") -> Any:
    answer = httpx.post(
        f"{server.url}/v1/models/{model}/predict",
        content=server.body,
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert answer.status_code == 200
    return answer.json()["predictions"]


def failed_start(*arguments: str) -> str:
    """The only line that a failed start prints."""
    done = subprocess.run([*WITHOUT_RAY, *UP, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == ""
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("tabpfn-serve: the start failed: ")
    return lines[0]


@pytest.mark.slow
@pytest.mark.usefixtures("entry")
def test_a_model_from_s3_answers_like_the_embedded_one_and_restarts_without_s3(relay: Relay) -> None:
    with running(WITHOUT_RAY, *UP) as server:
        first = prediction(server)
        assert server.stop() == (0, "")
    assert len(relay.requests) == 3
    relay.close()
    with running(WITHOUT_RAY, *UP) as server:
        assert prediction(server) == first
    with running(WITHOUT_RAY, *UP, "--model", f"fraud={EMBEDDED}/fraud/1") as server:
        assert prediction(server) == first


def test_a_wrong_digest_ends_the_start_with_one_line(entry: dict[str, Any], bucket: str) -> None:
    line = failed_start("--model", f"fraud={entry['uri']}@sha256:{'0' * 64}")
    found = f"s3://{bucket}/fraud/1/manifest.json has sha256 {entry['sha256']}"
    assert f"{found}, but store.models (fraud) says {'0' * 64}" in line


@pytest.mark.usefixtures("entry")
def test_a_missing_object_ends_the_start_with_one_line(bucket: str) -> None:
    assert "there is no such object" in failed_start("--model", f"fraud=s3://{bucket}/fraud/2")


@pytest.mark.slow
@pytest.mark.usefixtures("entry")
def test_a_pinned_pickle_from_s3_answers_as_the_estimator_in_it(swift: Swift, bucket: str) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"amount": rng.lognormal(3, 1, 80), "age": rng.integers(18, 80, 80).astype(float)})
    checkpoint = EMBEDDED / "checkpoints" / "demo-v3.5.safetensors"
    as_served = {"device": "cpu", "fit_mode": "fit_with_cache", "inference_precision": torch.float32}
    estimator = TabPFNClassifier(model_path=checkpoint, n_estimators=2, **as_served)
    pickled = pickle.dumps(estimator.fit(table, table["amount"] > 20))
    swift.upload(bucket, "exports/tabpfn_model.pkl", pickled)
    entry = f"churn=s3://{bucket}/exports/tabpfn_model.pkl@sha256:{hashlib.sha256(pickled).hexdigest()}"
    with running(WITHOUT_RAY, *UP, "--model", entry) as server:
        (answer,) = prediction(server, "churn")
        asked = pd.DataFrame(json.loads(server.body)["records"])
    expected = estimator.predict_proba(asked[list(table.columns)])[0]
    assert answer["probabilities"] == pytest.approx(expected.tolist(), abs=1e-4)


def test_an_unpinned_pickle_ends_the_start_with_the_setting_to_add(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from serve.cli import main as cli

    monkeypatch.setenv("TABPFN_SERVE_STORE_MODELS", '[{"name": "churn", "uri": "s3://bucket/tabpfn_model.pkl"}]')
    assert cli.main(["up"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"setting store\.models\.0: model churn: .*add `sha256: HEX`.*`sha256sum tabpfn_model\.pkl`", line)


@pytest.mark.slow
@pytest.mark.usefixtures("entry")
def test_a_stop_during_a_download_ends_at_once_and_the_next_start_is_whole(relay: Relay, cache: Path) -> None:
    relay.hold_after(2_000_000)
    starting = subprocess.Popen([*WITHOUT_RAY, *UP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    relay.wait_until_held()
    starting.send_signal(signal.SIGTERM)
    assert starting.communicate(timeout=60) == ("", "")
    assert starting.returncode == 0
    assert list(cache.rglob("*.part")) != []
    relay.release()
    with running(WITHOUT_RAY, *UP) as server:
        assert len(prediction(server)) == 1
    assert list(cache.rglob("*.part")) == []
