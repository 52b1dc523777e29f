"""Downloads disturbed by a failing network or server, by killed processes, and by processes that start together."""

import hashlib
import io
import re
import signal
import socket
from pathlib import Path

import pytest
from edge_harness import wait_until
from store.relay import Relay
from store.source_harness import (
    LARGE_WEIGHTS,
    NUM_FILES,
    WEIGHTS,
    digest,
    end_of,
    kept,
    load_cards,
    start_loading,
    start_process,
    store_of,
    write_cards,
)
from store.swift_harness import Swift

from serve.core.errors import InvalidModel, StartupError
from serve.settings.model_source import S3Location
from serve.store import s3

MIDDLE = len(WEIGHTS) // 2
PART_BYTES = 8 * 2**20
"""Of boto3's managed transfer."""


def test_a_server_that_is_not_there(relay: Relay, bucket: str, cache: Path) -> None:
    relay.close()
    with pytest.raises(StartupError, match=rf"{relay.endpoint} cannot be reached"):
        load_cards(relay, bucket, cache)


def test_a_server_that_never_answers(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StartupError, match=rf"{url} did not answer in time \(Read timeout"):
            store_of(f"s3://{bucket}/x", s3_endpoint_url=url, download_dir=cache).load("cards")


@pytest.fixture
def large_cards(tmp_path: Path, swift: Swift, bucket: str) -> Path:
    folder = write_cards(tmp_path / "models", LARGE_WEIGHTS)
    swift.upload_folder(bucket, "models/cards/1", folder)
    return folder


@pytest.mark.usefixtures("cards")
def test_a_stream_that_breaks_off_is_requested_again(
    relay: Relay, bucket: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relay.cut_after(MIDDLE)
    assert Path(load_cards(relay, bucket, cache).checkpoint_path).read_bytes() == WEIGHTS
    assert len(relay.requests) == NUM_FILES + 1
    assert "some-v3.5.safetensors broke off: downloading a part again" in caplog.text


@pytest.mark.usefixtures("cards")
def test_a_stream_that_stops_is_requested_again(
    relay: Relay, bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 2)
    relay.hold_after(MIDDLE)
    assert Path(load_cards(relay, bucket, cache).checkpoint_path).read_bytes() == WEIGHTS
    assert relay.held.is_set()


@pytest.mark.usefixtures("cards")
def test_a_stream_that_always_breaks_off_is_given_up(relay: Relay, bucket: str) -> None:
    relay.cut_every(100_000)
    place = S3Location(bucket, "models/cards/1/some-v3.5.safetensors")
    with pytest.raises(StartupError, match=rf"{place} cannot be downloaded: the connection broke off 3 times \("):
        s3.S3(relay.endpoint).download(place, io.BytesIO())
    assert len(relay.requests) == s3.MAX_ATTEMPTS


@pytest.mark.usefixtures("large_cards")
def test_a_large_object_comes_in_parts_and_only_a_broken_part_comes_again(
    relay: Relay, bucket: str, cache: Path
) -> None:
    relay.cut_after(PART_BYTES * 5 // 4)
    assert Path(load_cards(relay, bucket, cache).checkpoint_path).read_bytes() == LARGE_WEIGHTS
    asked = [request for request in relay.requests if "safetensors" in request]
    ranges = [re.findall(r"range: bytes=(\d+)-", request.lower()) for request in asked]
    starts = [int(start) for (start,) in ranges]
    assert sorted(set(starts)) == [0, PART_BYTES, 2 * PART_BYTES]
    assert len(starts) == 4
    assert starts.count(0) == 1
    assert ["if-match: " in request.lower() for request in asked] == [False, True, True, True]


@pytest.mark.usefixtures("cards")
def test_the_digest_of_a_part_that_is_requested_again_is_compared_too(
    swift: Swift, relay: Relay, bucket: str, cache: Path
) -> None:
    loading = start_loading(relay, bucket, cache, MIDDLE)
    swift.upload(bucket, "models/cards/1/some-v3.5.safetensors", WEIGHTS[::-1])
    relay.cut_after(0)
    relay.release()
    assert f"has sha256 {hashlib.sha256(WEIGHTS[::-1]).hexdigest()}" in end_of(loading)
    assert kept(cache) == ["context.parquet", "manifest.json"]


@pytest.mark.usefixtures("large_cards")
def test_parts_of_two_objects_are_not_put_together(swift: Swift, relay: Relay, bucket: str, cache: Path) -> None:
    loading = start_loading(relay, bucket, cache, MIDDLE)
    swift.upload(bucket, "models/cards/1/some-v3.5.safetensors", LARGE_WEIGHTS[::-1])
    relay.release()
    assert "the object was replaced while it was downloaded" in end_of(loading)
    assert kept(cache) == ["context.parquet", "manifest.json"]


def test_an_empty_object_is_empty(swift: Swift, relay: Relay, bucket: str, cache: Path) -> None:
    swift.upload(bucket, "models/cards/1/manifest.json", b"")
    with pytest.raises(InvalidModel, match=r"models/cards/1/manifest\.json: the file: Invalid JSON: EOF"):
        load_cards(relay, bucket, cache)


@pytest.mark.usefixtures("cards")
def test_a_full_disk(swift: Swift, bucket: str) -> None:
    """The system's own full device stands in for a full disk."""
    place = S3Location(bucket, "models/cards/1/manifest.json")
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left on device"):
        s3.S3(swift.endpoint).download(place, full)


@pytest.mark.usefixtures("large_cards")
def test_a_server_that_is_killed_in_the_middle(swift: Swift, relay: Relay, bucket: str, cache: Path) -> None:
    loading = start_loading(relay, bucket, cache, MIDDLE)
    swift.kill()
    try:
        relay.release()
        assert "cannot be reached" in end_of(loading)
        assert kept(cache) == ["context.parquet", "manifest.json"]
    finally:
        swift.start()
    assert Path(load_cards(relay, bucket, cache).checkpoint_path).read_bytes() == LARGE_WEIGHTS


def test_a_server_that_is_restarted_in_the_middle(
    large_cards: Path, swift: Swift, relay: Relay, bucket: str, cache: Path
) -> None:
    loading = start_loading(relay, bucket, cache, MIDDLE)
    swift.kill()
    swift.start()
    relay.release()
    assert end_of(loading) == "loaded"
    assert (cache / digest(large_cards) / "some-v3.5.safetensors").read_bytes() == LARGE_WEIGHTS
    assert "range: bytes=" in relay.requests[-1].lower()


@pytest.mark.usefixtures("cards")
def test_a_killed_process_leaves_no_file_that_counts_as_whole(relay: Relay, bucket: str, cache: Path) -> None:
    loading = start_loading(relay, bucket, cache, MIDDLE)
    wait_until(lambda: any(path.stat().st_size > 0 for path in cache.rglob("*.safetensors.part")))
    loading.send_signal(signal.SIGKILL)
    loading.communicate(timeout=60)
    relay.release()
    assert kept(cache) == ["context.parquet", "manifest.json", "some-v3.5.safetensors.part"]
    assert Path(load_cards(relay, bucket, cache).checkpoint_path).read_bytes() == WEIGHTS
    assert kept(cache) == ["context.parquet", "manifest.json", "some-v3.5.safetensors"]


@pytest.mark.usefixtures("cards")
def test_two_that_start_together_download_once(relay: Relay, bucket: str, cache: Path) -> None:
    first = start_loading(relay, bucket, cache, MIDDLE)
    second = start_process(relay, bucket, cache)
    wait_until(lambda: sum("manifest.json" in request for request in relay.requests) == 2)
    relay.release()
    assert end_of(first) == end_of(second) == "loaded"
    assert len(relay.requests) == NUM_FILES + 1  # each reads the manifest, which is not pinned
