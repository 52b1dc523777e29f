"""A real S3 server for the tests of the store."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from store.relay import Relay, relay_to
from store.source_harness import write_cards
from store.swift_harness import Swift, running_swift

_OF_AWS = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    with running_swift(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture
def relay(swift: Swift) -> Iterator[Relay]:
    with relay_to(swift.port) as relay:
        yield relay


@pytest.fixture
def bucket(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, with the credentials for it in the environment."""
    for name in _OF_AWS:
        monkeypatch.delenv(name, raising=False)
    for name, value in swift.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    name = f"test-{uuid.uuid4().hex}"
    swift.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def cards(tmp_path: Path, swift: Swift, bucket: str) -> Path:
    """A model folder, uploaded to `s3://BUCKET/models/cards/1` as well."""
    folder = write_cards(tmp_path / "models")
    swift.upload_folder(bucket, "models/cards/1", folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The folder of downloads, which does not exist yet."""
    return tmp_path / "cache"
