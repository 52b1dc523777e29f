"""Models of `store.models` on this machine are loaded as pinned, or refused with the fault. For S3 see test_s3.py."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store.source_harness import digest, edit, store_of, write_cards

from serve.core.errors import InvalidModel, StartupError, UnknownModel
from serve.settings import StoreSettings
from serve.store import SourceStore
from serve.store.folder import sha256_of
from serve.store.manifest import FileEntry
from serve.store.sources import _path_inside


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    return write_cards(tmp_path / "models")


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_a_folder_on_this_machine_is_served_where_it_lies(cards: Path, form: str, tmp_path: Path) -> None:
    served = store_of(form.format(cards), download_dir=tmp_path / "cache")
    assert served.names() == ["cards"]
    model = served.load("cards")
    assert (model.name, model.version) == ("cards", "1")
    assert model.checkpoint_path == str(cards / "some-v3.5.safetensors")
    assert not (tmp_path / "cache").exists()


def test_boto3_is_imported_only_if_a_model_is_in_s3(cards: Path) -> None:
    code = """
import sys
import serve.cli.main
from serve.settings import StoreSettings
from serve.store import SourceStore
SourceStore(StoreSettings(models=[{"name": "cards", "uri": sys.argv[1]}])).load("cards")
assert not {"boto3", "botocore"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(cards)], check=True, timeout=60)


def test_models_are_named_in_order_and_others_unknown(cards: Path) -> None:
    entries = [{"name": name, "uri": str(cards)} for name in ("zebra", "cards")]
    served = SourceStore(StoreSettings.model_validate({"models": entries}))
    assert served.names() == ["cards", "zebra"]
    with pytest.raises(UnknownModel, match="'fraud'"):
        served.load("fraud")


def test_the_manifest_must_have_the_same_name(cards: Path) -> None:
    with pytest.raises(InvalidModel, match=r"manifest\.json is of model 'cards', not of 'fraud'"):
        store_of(cards, name="fraud").load("fraud")


def test_a_pinned_folder_must_have_the_digest_in_either_case(cards: Path) -> None:
    pin = digest(cards)
    assert store_of(cards, pin.upper()).load("cards").version == "1"
    edit(cards, description="changed")
    with pytest.raises(InvalidModel, match=rf"has sha256 {digest(cards)}, but store\.models \(cards\) says {pin}"):
        store_of(cards, pin).load("cards")


def test_a_folder_without_a_manifest_says_which_uri_is_needed(cards: Path) -> None:
    with pytest.raises(InvalidModel, match=r"cards/manifest\.json cannot be read: No such file.*NAME/VERSION"):
        store_of(cards.parent).load("cards")


@pytest.mark.parametrize("name", ["manifest.json", "context.parquet", "some-v3.5.safetensors"])
def test_an_unreadable_file_is_named(cards: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, who often runs tests, so reading itself is refused."""
    original = Path.open

    def refuse(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return original(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InvalidModel, match=f"{name} cannot be read: Permission denied"):
        store_of(cards).load("cards")


def test_a_fitted_estimator_in_a_folder_must_be_pinned(cards: Path) -> None:
    (cards / "estimator.pickle").write_bytes(b"code")
    facts = {"source_sha256": "0" * 64, "made_by": "tests", "num_context_rows": 4, "num_members": 2}
    edit(
        cards,
        context=None,
        estimator={"path": "estimator.pickle", "sha256": sha256_of(cards / "estimator.pickle"), **facts},
    )
    with pytest.raises(InvalidModel, match=r"which is a pickle: add `sha256`.*sha256sum manifest\.json"):
        store_of(cards).load("cards")
    assert store_of(cards, digest(cards)).load("cards").estimator_path == str(cards / "estimator.pickle")


def test_a_pickle_of_another_digest_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "tabpfn_model.pkl"
    file.write_bytes(b"code")
    expected = rf"tabpfn_model\.pkl has sha256 {sha256_of(file)}, but store\.models \(churn\) says {'0' * 64}"
    with pytest.raises(InvalidModel, match=expected):
        store_of(file, "0" * 64, name="churn", download_dir=tmp_path / "cache").load("churn")


def test_an_absent_pickle(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"absent\.joblib cannot be read: No such file"):
        store_of(tmp_path / "absent.joblib", "0" * 64, name="churn").load("churn")


def test_a_pickle_of_the_pinned_digest_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """test_pickles.py tests the import; here a ready folder stands for it."""
    file = tmp_path / "tabpfn_model.pkl"
    file.write_bytes(b"code")
    seen: dict[str, Any] = {}

    def import_pickle(path: Path, **named: Any) -> Path:
        seen.update(named, path=path)
        return write_cards(named["work_dir"])

    monkeypatch.setattr("serve.store.pickles.import_pickle", import_pickle)
    model = store_of(file, sha256_of(file), download_dir=tmp_path / "cache").load("cards")
    assert model.name == "cards"
    work_dir = tmp_path / "cache" / "imported" / sha256_of(file)
    assert seen == {"path": file, "name": "cards", "sha256": sha256_of(file), "work_dir": work_dir}
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_a_pickle_needs_a_folder_to_be_imported_into(tmp_path: Path) -> None:
    file = tmp_path / "tabpfn_model.pkl"
    file.write_bytes(b"code")
    with pytest.raises(StartupError, match=r"cache \(store\.download_dir\) cannot be used: Not a directory"):
        store_of(file, sha256_of(file), download_dir=file / "cache").load("cards")


@given(st.text(alphabet=st.sampled_from("./a\\\n\0"), max_size=12))
def test_a_downloaded_file_stays_inside_its_folder(path: str) -> None:
    entry = FileEntry(path=Path(path), sha256="0" * 64)
    try:
        inside = _path_inside(entry, "s3://bucket/x/manifest.json")
    except InvalidModel:
        assert ".." in path or path[:1] == "/" or not path.isprintable() or not path.strip("./")
        return
    assert ".." not in inside.parts
    assert inside.parts
    assert Path("/cache", inside).is_relative_to("/cache")
