"""Models from a real S3 server (OpenStack Swift) are downloaded, verified and kept, or refused with the cause."""

import hashlib
from pathlib import Path

import pytest
from store.relay import Relay
from store.source_harness import NUM_FILES, WEIGHTS, digest, edit, kept, load_cards, store_of, write_cards
from store.swift_harness import WITHOUT_CREDENTIALS, Swift

from serve.core.errors import InvalidModel, StartupError
from serve.store.folder import sha256_of

MIDDLE = len(WEIGHTS) // 2


def test_a_folder_is_downloaded_whole_and_kept(cards: Path, relay: Relay, bucket: str, cache: Path) -> None:
    model = load_cards(relay, bucket, cache)
    assert (model.name, model.version, model.context.num_rows) == ("cards", "1", 4)
    assert Path(model.checkpoint_path) == cache / digest(cards) / "some-v3.5.safetensors"
    assert Path(model.checkpoint_path).read_bytes() == WEIGHTS
    assert kept(cache) == ["context.parquet", "manifest.json", "some-v3.5.safetensors"]
    assert len(relay.requests) == NUM_FILES


def test_boto3s_own_variable_names_the_server(
    cards: Path, swift: Swift, bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", swift.endpoint)
    model = store_of(f"s3://{bucket}/models/cards/1/", digest(cards), download_dir=cache).load("cards")
    assert model.checkpoint_path.startswith(str(cache))


@pytest.mark.usefixtures("cards")
def test_a_restart_reads_an_unpinned_manifest_alone(relay: Relay, bucket: str, cache: Path) -> None:
    load_cards(relay, bucket, cache)
    relay.requests.clear()
    load_cards(relay, bucket, cache)
    assert len(relay.requests) == 1
    assert "manifest.json" in relay.requests[0]


def test_a_restart_of_a_pinned_model_needs_no_server(cards: Path, relay: Relay, bucket: str, cache: Path) -> None:
    first = load_cards(relay, bucket, cache, digest(cards))
    relay.close()
    assert load_cards(relay, bucket, cache, digest(cards)) == first


def test_a_new_version_is_seen(cards: Path, swift: Swift, relay: Relay, bucket: str, cache: Path) -> None:
    load_cards(relay, bucket, cache)
    edit(cards, version="2")
    swift.upload_folder(bucket, "models/cards/1", cards)
    assert load_cards(relay, bucket, cache).version == "2"


def test_a_half_written_file_is_downloaded_anew(cards: Path, relay: Relay, bucket: str, cache: Path) -> None:
    weights = Path(load_cards(relay, bucket, cache, digest(cards)).checkpoint_path)
    weights.write_bytes(WEIGHTS[:MIDDLE])
    relay.requests.clear()
    load_cards(relay, bucket, cache, digest(cards))
    assert weights.read_bytes() == WEIGHTS
    assert len(relay.requests) == 1


# --- digests and paths


def test_a_manifest_of_another_digest_is_refused(cards: Path, relay: Relay, bucket: str, cache: Path) -> None:
    expected = rf"models/cards/1/manifest\.json has sha256 {digest(cards)}, but store\.models \(cards\) says {'0' * 64}"
    with pytest.raises(InvalidModel, match=expected):
        load_cards(relay, bucket, cache, "0" * 64)
    assert kept(cache) == []
    assert len(relay.requests) == 1


def test_a_file_of_another_digest_is_refused(cards: Path, swift: Swift, relay: Relay, bucket: str, cache: Path) -> None:
    swift.upload(bucket, "models/cards/1/some-v3.5.safetensors", b"x" + WEIGHTS[1:])
    expected = rf"safetensors has sha256 \w+, but s3://.*manifest\.json says {hashlib.sha256(WEIGHTS).hexdigest()}"
    with pytest.raises(InvalidModel, match=expected):
        load_cards(relay, bucket, cache, digest(cards))
    assert kept(cache) == ["context.parquet", "manifest.json"]


@pytest.mark.parametrize("path", ["../../some-v3.5.safetensors", "/etc/passwd", "a/../../x", "."])
def test_a_file_outside_of_the_folder_is_never_requested(
    cards: Path, swift: Swift, relay: Relay, bucket: str, cache: Path, path: str
) -> None:
    edit(cards, context={"path": path, "sha256": "0" * 64})
    swift.upload_folder(bucket, "models/cards/1", cards)
    with pytest.raises(InvalidModel, match=r"manifest\.json names '.*', which is not in its folder"):
        load_cards(relay, bucket, cache)
    assert len(relay.requests) == 1


def test_a_pickle_is_downloaded_only_to_be_compared(swift: Swift, relay: Relay, bucket: str, cache: Path) -> None:
    swift.upload(bucket, "tabpfn_model.pkl", b"code")
    found = hashlib.sha256(b"code").hexdigest()
    store = store_of(f"s3://{bucket}/tabpfn_model.pkl", "0" * 64, s3_endpoint_url=relay.endpoint, download_dir=cache)
    with pytest.raises(InvalidModel, match=rf"has sha256 {found}, but store\.models \(cards\) says {'0' * 64}"):
        store.load("cards")
    assert kept(cache) == []


def test_a_pinned_pickle_is_handed_to_the_import(
    swift: Swift, relay: Relay, bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """test_pickles.py tests the import; here a ready folder stands for it."""
    swift.upload(bucket, "exports/tabpfn_model.pkl", b"code")
    pin = hashlib.sha256(b"code").hexdigest()
    monkeypatch.setattr("serve.store.pickles.import_pickle", lambda path, **named: handed(path, **named))

    def handed(path: Path, *, name: str, sha256: str, work_dir: Path) -> Path:
        assert (path, name, sha256) == (cache / pin / "tabpfn_model.pkl", "cards", pin)
        assert sha256_of(path) == pin
        return write_cards(work_dir)

    uri = f"s3://{bucket}/exports/tabpfn_model.pkl"
    assert store_of(uri, pin, s3_endpoint_url=relay.endpoint, download_dir=cache).load("cards").name == "cards"


# --- absent objects and wrong credentials


@pytest.mark.usefixtures("cards")
def test_a_missing_object_is_named(swift: Swift, relay: Relay, bucket: str, cache: Path) -> None:
    swift.client().delete_object(Bucket=bucket, Key="models/cards/1/context.parquet")
    with pytest.raises(InvalidModel, match=rf"s3://{bucket}/models/cards/1/context\.parquet .*no such object"):
        load_cards(relay, bucket, cache)


@pytest.mark.usefixtures("cards")
def test_a_missing_manifest_says_which_uri_is_needed(relay: Relay, bucket: str, cache: Path) -> None:
    uri = f"s3://{bucket}/models/cards"
    with pytest.raises(InvalidModel, match=rf"{uri}/manifest\.json .*no such object.*NAME/VERSION"):
        store_of(uri, s3_endpoint_url=relay.endpoint, download_dir=cache).load("cards")


@pytest.mark.usefixtures("bucket")
def test_a_missing_bucket_is_named(relay: Relay, cache: Path) -> None:
    with pytest.raises(InvalidModel, match=r"s3://no-such-bucket/.*: there is no such bucket"):
        load_cards(relay, "no-such-bucket", cache)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.usefixtures("cards")
def test_a_wrong_key(relay: Relay, bucket: str, cache: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "test:wrong")
    with pytest.raises(StartupError, match="the credentials are wrong"):
        load_cards(relay, bucket, cache)
    assert len(relay.requests) == 1, "a wrong key was tried again"


def test_no_credentials(relay: Relay, bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name, value in WITHOUT_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match="no AWS credentials were found"):
        load_cards(relay, bucket, cache)
    assert relay.requests == []


def test_a_profile_that_is_not_there(relay: Relay, bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(StartupError, match=r"S3 cannot be used: .*absent"):
        load_cards(relay, bucket, cache)
