"""The models of the setting `store.models`: model folders and pickles, on this machine or in S3."""

from __future__ import annotations

import hashlib
import io
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from serve.core import ModelDefinition
from serve.core.errors import InvalidModel, UnknownModel
from serve.settings import StoreSettings
from serve.settings.model_source import ModelSource, S3Location
from serve.store.downloads import Downloads
from serve.store.folder import parse_manifest, read_model, sha256_of
from serve.store.manifest import MANIFEST, FileEntry, Manifest

if TYPE_CHECKING:
    from serve.store.s3 import S3

_HINT = f"uri must name the folder that holds {MANIFEST}, such as .../NAME/VERSION"


class SourceStore:
    """A `ModelStore` that serves `store.models`. It opens and downloads nothing before `load`.

    Args:
        settings: all of them are used but `model_repository`.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._sources = {source.name: source for source in settings.models}

    def names(self) -> list[str]:
        """Return the names in `store.models`, sorted."""
        return sorted(self._sources)

    def load(self, name: str) -> ModelDefinition:
        """Return a model, downloaded or imported if no verified copy is kept.

        Raises:
            UnknownModel: `store.models` has no such name.
            InvalidModel: a file is absent, has another digest, or is inconsistent.
            StartupError: a file cannot be downloaded or kept.
        """
        if name not in self._sources:
            raise UnknownModel(f"store.models has no model {name!r}")
        source = self._sources[name]
        folder, manifest = self._import(source) if source.is_pickle else self._folder(source)
        return read_model(folder, manifest, allow_non_commercial=self._settings.allow_non_commercial)

    # --- pickles

    def _import(self, source: ModelSource) -> tuple[Path, Manifest]:
        from serve.store.pickles import import_pickle

        assert source.sha256 is not None, "this is a bug: the settings refuse a pickle that is not pinned"
        folder = import_pickle(
            self._pickle(source, source.sha256),
            name=source.name,
            sha256=source.sha256,
            work_dir=self._downloads.folder_for("imported", source.sha256),
        )
        return folder, parse_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))

    def _pickle(self, source: ModelSource, sha256: str) -> Path:
        """Return a file on this machine whose digest was compared."""
        place = source.location
        if isinstance(place, S3Location):
            kept = PurePosixPath(sha256, PurePosixPath(place.key).name)
            return self._downloads.get(kept, sha256, partial(self._s3_download, place), str(place), _setting(source))
        try:
            digest = sha256_of(place)
        except OSError as error:
            raise InvalidModel(f"{place} cannot be read: {error.strerror}") from error
        _compare(digest, source, str(place))
        return place

    # --- folders

    def _folder(self, source: ModelSource) -> tuple[Path, Manifest]:
        place = source.location
        if isinstance(place, S3Location):
            return self._downloaded(source, place)
        path = place / MANIFEST
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidModel(f"{path} cannot be read: {error.strerror}; {_HINT}") from error
        _compare(hashlib.sha256(content).hexdigest(), source, str(path))
        return place, _parse(content, source, str(path))

    def _downloaded(self, source: ModelSource, place: S3Location) -> tuple[Path, Manifest]:
        origin = str(place.child(MANIFEST))
        content = self._manifest(source, place.child(MANIFEST))
        manifest = _parse(content, source, origin)
        digest = hashlib.sha256(content).hexdigest()
        for _, entry in manifest:
            if isinstance(entry, FileEntry):
                path = _path_inside(entry, origin)
                file = place.child(str(path))
                download = partial(self._s3_download, file)
                self._downloads.get(PurePosixPath(digest, path), entry.sha256, download, str(file), origin)
        return self._downloads.folder / digest, manifest

    def _manifest(self, source: ModelSource, place: S3Location) -> bytes:
        """A pinned manifest is kept. One without a digest is read at each start, so that a change is seen."""
        if source.sha256 is not None:
            digest, download = source.sha256, partial(self._s3_download, place)
        else:
            content = io.BytesIO()
            self._s3_download(place, content)
            digest = hashlib.sha256(content.getvalue()).hexdigest()
            download = partial(_write, content.getvalue())
        kept = PurePosixPath(digest, MANIFEST)
        return self._downloads.get(kept, digest, download, str(place), _setting(source)).read_bytes()

    # --- made at first use: a kept file needs no S3, and a local folder needs no folder of downloads

    def _s3_download(self, place: S3Location, file: BinaryIO) -> None:
        try:
            self._s3.download(place, file)
        except InvalidModel as error:
            raise InvalidModel(f"{error}; {_HINT}" if place.key.endswith(MANIFEST) else str(error)) from error

    @cached_property
    def _s3(self) -> S3:
        from serve.store.s3 import S3  # importing boto3 takes time

        return S3(self._settings.s3_endpoint_url)

    @cached_property
    def _downloads(self) -> Downloads:
        return Downloads(self._settings.download_dir)


def _setting(source: ModelSource) -> str:
    return f"store.models ({source.name})"


def _compare(digest: str, source: ModelSource, place: str) -> None:
    if source.sha256 not in (None, digest):
        raise InvalidModel(
            f"{place} has sha256 {digest}, but {_setting(source)} says {source.sha256}; "
            "correct the digest, or put the right file there"
        )


def _parse(content: bytes, source: ModelSource, place: str) -> Manifest:
    manifest = parse_manifest(content, place)
    if manifest.name != source.name:
        raise InvalidModel(
            f"{place} is of model {manifest.name!r}, not of {source.name!r} as in store.models; use the same name"
        )
    if manifest.estimator is not None and source.sha256 is None:
        raise InvalidModel(
            f"{place} holds a fitted estimator, which is a pickle: add `sha256` to {_setting(source)}, with the digest "
            f"that `sha256sum {MANIFEST}` prints for the copy that you trust"
        )
    return manifest


def _path_inside(entry: FileEntry, manifest: str) -> PurePosixPath:
    """Return the path of a downloaded file, which must lie in the folder of its manifest."""
    path = PurePosixPath(entry.path)
    if path.is_absolute() or ".." in path.parts or not path.parts or not str(path).isprintable():
        raise InvalidModel(
            f"{manifest} names {str(path)!r}, which is not in its folder; put the file beside the manifest, because "
            "other files are not downloaded"
        )
    return path


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)
