"""A kept file is whole and has the pinned digest, or does not exist."""

import hashlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pytest

from serve.core.errors import InvalidModel, StartupError
from serve.store.downloads import Downloads

CONTENT = b"weights" * 1_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = PurePosixPath(DIGEST, "weights.safetensors")


class Source:
    """A download that counts its calls."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.num_downloads = 0

    def __call__(self, file: BinaryIO) -> None:
        self.num_downloads += 1
        file.write(self.content)


def get(folder: Path, source: Source) -> Path:
    return Downloads(folder).get(FILE, DIGEST, source, "s3://bucket/weights", "store.models (cards)")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_kept_file_is_not_downloaded_again(tmp_path: Path) -> None:
    source = Source()
    for _ in range(2):
        assert get(tmp_path / "cache", source).read_bytes() == CONTENT
    assert source.num_downloads == 1
    assert files(tmp_path) == {"weights.safetensors"}


def test_only_the_owner_can_read_the_folder(tmp_path: Path) -> None:
    get(tmp_path / "cache", Source())
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"", CONTENT[:-1] + b"X"])
def test_a_file_that_has_changed_is_downloaded_anew(tmp_path: Path, damaged: bytes) -> None:
    path = get(tmp_path, Source())
    path.write_bytes(damaged)
    source = Source()
    assert get(tmp_path, source).read_bytes() == CONTENT
    assert source.num_downloads == 1


def test_a_half_written_file_is_written_anew(tmp_path: Path) -> None:
    part = tmp_path / DIGEST / "weights.safetensors.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT * 2)
    assert get(tmp_path, Source()).read_bytes() == CONTENT
    assert files(tmp_path) == {"weights.safetensors"}


def test_another_digest_is_refused_and_nothing_kept(tmp_path: Path) -> None:
    expected = rf"s3://bucket/weights has sha256 \w+, but store\.models \(cards\) says {DIGEST}"
    with pytest.raises(InvalidModel, match=expected):
        get(tmp_path, Source(b"other"))
    assert files(tmp_path) == set()


def test_a_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(CONTENT[:100])
        raise StartupError("the server is gone")

    with pytest.raises(StartupError, match="the server is gone"):
        Downloads(tmp_path).get(FILE, DIGEST, fail, "s3://bucket/weights", "the manifest")
    assert files(tmp_path) == set()
    assert get(tmp_path, Source()).read_bytes() == CONTENT


def test_a_full_disk(tmp_path: Path) -> None:
    """The system's own full device stands in for a full disk."""

    def write(file: BinaryIO) -> None:
        file.write(CONTENT[:100])
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(CONTENT)

    with pytest.raises(StartupError, match=r"weights cannot be kept in .*download_dir.*: No space left on device"):
        Downloads(tmp_path).get(FILE, DIGEST, write, "s3://bucket/weights", "the manifest")
    assert files(tmp_path) == set()
    assert get(tmp_path, Source()).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=r"cannot be kept in .*/file/cache \(store\.download_dir\): Not a directory"):
        get(tmp_path / "file" / "cache", Source())


def test_the_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Downloads(None).folder == tmp_path / "tabpfn-serve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Downloads(None).folder == tmp_path / ".cache" / "tabpfn-serve"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(StartupError, match=r"set store\.download_dir"):
        Downloads(None)
    assert Downloads(Path("cache")).folder == Path("cache")
