"""A container whose model is in an S3 server (Swift): the right digest is served, a wrong one fails the start."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers.container_harness import IMAGE, Container, smoke
from store.source_harness import digest, edit
from store.swift_harness import Swift, running_swift

from serve.store.folder import EMBEDDED

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(not IMAGE, reason="no image is named; make test-images builds one and runs this"),
]

BUCKET = "models"


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    with running_swift(tmp_path_factory.mktemp("swift")) as server:
        server.client().create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture(scope="module")
def sha256(swift: Swift, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the demo model, which this uploads as one folder that contains its checkpoint."""
    folder = tmp_path_factory.mktemp("models") / "fraud" / "1"
    shutil.copytree(EMBEDDED / "fraud" / "1", folder)
    checkpoint = json.loads((folder / "manifest.json").read_text())["checkpoint"]
    weights = folder / Path(checkpoint["path"]).name
    shutil.copyfile(EMBEDDED / "fraud" / "1" / checkpoint["path"], weights)
    edit(folder, checkpoint={**checkpoint, "path": weights.name})
    swift.upload_folder(BUCKET, "fraud/1", folder)
    return digest(folder)


def environment(swift: Swift, sha256: str) -> dict[str, str]:
    entry = {"name": "fraud", "uri": f"s3://{BUCKET}/fraud/1", "sha256": sha256}
    return {**swift.environment, "TABPFN_SERVE_STORE_MODELS": json.dumps([entry])}


@pytest.mark.parametrize("command", ["serve", "up"])
def test_the_right_digest_is_served(command: str, swift: Swift, sha256: str) -> None:
    with Container(command, environment=environment(swift, sha256)) as container:
        print(f"\n{command}: ready after {container.wait_ready():.1f} s")
        done = smoke(container.url)
        assert done.returncode == 0, done.stdout
        kept = container.run("find", "/var/cache/tabpfn-serve/models", "-name", "manifest.json").stdout
        assert kept.strip(), "served, but not from the bucket"


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_wrong_digest_ends_the_start(command: str, swift: Swift, sha256: str) -> None:
    wrong = sha256[::-1]
    with Container(command, environment=environment(swift, wrong)) as container:
        code, logs = container.wait_end(), container.logs().strip()
    print(f"\nexit code {code}: {logs}")
    assert code == 1
    assert wrong in logs
    assert len(logs.splitlines()) == 1
