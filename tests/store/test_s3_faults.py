"""Downloads that are disturbed: by a network or server that fails, by killed processes, by others that start too."""

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

from serve.core.errors import StartupError
from serve.store import s3

MIDDLE = len(WEIGHTS) // 2


def test_a_server_that_is_not_there(relay: Relay, bucket: str, cache: Path) -> None:
    relay.close()
    with pytest.raises(StartupError, match=rf"{relay.endpoint} cannot be reached"):
        load_cards(relay, bucket, cache)


def test_a_server_that_never_answers(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StartupError, match=rf"{url} cannot be reached \(Read timeout"):
            store_of(f"s3://{bucket}/x", s3_endpoint_url=url, download_dir=cache).load("cards")


@pytest.mark.usefixtures("cards")
def test_a_stream_that_breaks_off_is_taken_up_where_it_broke(relay: Relay, bucket: str, cache: Path) -> None:
    relay.cut_after(MIDDLE)
    assert Path(load_cards(relay, bucket, cache).checkpoint_path).read_bytes() == WEIGHTS
    assert len(relay.requests) == NUM_FILES + 1
    assert "range: bytes=" in relay.requests[-1].lower()
    assert "if-match: " in relay.requests[-1].lower()


@pytest.mark.usefixtures("cards")
def test_a_stream_is_not_taken_up_with_another_object(swift: Swift, relay: Relay, bucket: str, cache: Path) -> None:
    loading = start_loading(relay, bucket, cache, MIDDLE)
    swift.upload(bucket, "models/cards/1/some-v3.5.safetensors", WEIGHTS[::-1])
    relay.cut_after(0)
    relay.release()
    assert "the object was replaced while it was downloaded" in end_of(loading)
    assert kept(cache) == ["context.parquet", "manifest.json"]


@pytest.fixture
def large_cards(tmp_path: Path, swift: Swift, bucket: str) -> Path:
    folder = write_cards(tmp_path / "models", LARGE_WEIGHTS)
    swift.upload_folder(bucket, "models/cards/1", folder)
    return folder


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
def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(
    relay: Relay, bucket: str, cache: Path
) -> None:
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
