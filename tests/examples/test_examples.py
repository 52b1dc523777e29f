"""Every example runs as its docstring says; the callers run against one real server."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pandas as pd
import pytest
from edge_harness import AS_INSTALLED, Server, running
from ports import free_port

from examples.score_dataframe import score
from serve.store.folder import EMBEDDED

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MAX_REQUEST_ROWS = 300
"""The example scores 1,000 rows, so that it needs four chunks."""


def run(name: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=environment, check=False)


def output_of(name: str, *arguments: str, cwd: Path | None = None) -> str:
    finished = run(name, *arguments, cwd=cwd)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`tabpfn-serve up` on the repository that serve_your_own_table.py wrote, with the demo model beside its own."""
    folder = tmp_path_factory.mktemp("own")
    assert "wrote models/wine/1" in output_of("serve_your_own_table.py", cwd=folder)
    shutil.copytree(EMBEDDED, folder / "models", dirs_exist_ok=True)
    limit = f"--max-request-rows={MAX_REQUEST_ROWS}"
    port = f"--port={free_port()}"
    with running(AS_INSTALLED, "up", "--model-repository", str(folder / "models"), port, limit) as server:
        yield server


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [file.name for file in EXAMPLES.glob("*.py") if f'"{file.name}"' not in text] == []


def test_the_engine_answers_as_a_library() -> None:
    found = re.findall(r"\d\.\d+(?:e-\d+)?", output_of("use_the_engine.py"))
    assert len(found) == 4
    assert sum(map(float, found)) == pytest.approx(2)


@pytest.mark.parametrize("model", ["fraud", "wine"])
def test_one_record_with_requests(server: Server, model: str) -> None:
    printed = output_of("predict_with_requests.py", server.url, model)
    probabilities = [float(value) for value in re.findall(r"'\d': (\S+?)[,}]", printed)]
    assert len(probabilities) == (2 if model == "fraud" else 3)
    assert sum(probabilities) == pytest.approx(1)


def test_a_refusal_with_requests(server: Server) -> None:
    finished = run("predict_with_requests.py", server.url, "unknown")
    assert finished.returncode == 1
    assert finished.stderr.startswith("404 unknown_model: ")


def test_fifty_at_once_with_httpx(server: Server) -> None:
    printed = output_of("predict_with_httpx.py", server.url)
    assert printed.startswith("50 answers; ")
    assert max(int(rows) for rows in re.findall(r"\d+", printed.split("batch: ")[1].split("]")[0])) > 1


def test_a_frame_is_scored_in_chunks(server: Server) -> None:
    printed = output_of("score_dataframe.py", server.url)
    assert printed.split("\n")[0].split() == ["probability_0", "probability_1"]
    assert "[1000 rows x 2 columns]" in printed


def test_the_scores_of_a_frame_keep_its_index(server: Server) -> None:
    example = httpx.get(f"{server.url}/v1/models/fraud").json()["example"]
    frame = pd.DataFrame([example] * (MAX_REQUEST_ROWS + 3))
    frame["amount"] = [float(row % 7) * 100 for row in range(len(frame))]
    frame.loc[::5, "distance_km"] = None
    frame = frame.sample(frac=1, random_state=0)  # an index out of order
    scores = score(frame, server.url, "fraud")
    assert scores.index.equals(frame.index)
    for label in (frame.index[0], frame.index[-1]):  # of the first chunk and of the last
        alone = score(frame.loc[[label]], server.url, "fraud")
        assert scores.loc[label].tolist() == pytest.approx(alone.loc[label].tolist(), abs=1e-6)
