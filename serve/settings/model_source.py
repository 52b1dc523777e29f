"""One entry of the setting `store.models`: a model's name, its place, and the SHA-256 that its file must have.

The URI alone tells which of three kinds an entry is, so that a bad one is refused before a file is opened:

    /models/fraud/3  file:///models/fraud/3      a model folder on this machine: the one that holds manifest.json
    s3://bucket/models/fraud/3                   a model folder in S3
    s3://bucket/tabpfn_model.pkl  ./model.joblib a pickle, known by its suffix, on this machine or in S3

`sha256` is the digest of the pickle, or of the manifest, which holds the digests of the other files. Opening a pickle
can run code, so a pickle without `sha256` is refused.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, model_validator

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
AnyCaseSha256 = Annotated[Sha256, BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)]

PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib", ".tabpfn_fit")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_PINNED = re.compile(r"(.+)@sha256:([0-9A-Fa-f]{64})", re.DOTALL)


class S3Location(NamedTuple):
    """A bucket, and a key in it or a prefix of keys; neither ends with a slash."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def child(self, path: str) -> S3Location:
        """The place of a file in this folder; `path` is relative to the folder."""
        return S3Location(self.bucket, f"{self.key}/{path}" if self.key else path)


class ModelSource(BaseModel):
    """One model: its name, where it is kept, and its digest. Also made from the text `NAME=URI[@sha256:HEX]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ModelName
    uri: str
    sha256: AnyCaseSha256 | None = None

    @property
    def location(self) -> Path | S3Location:
        """The place that `uri` names: on this machine, or in S3."""
        return _location(self.uri)

    @property
    def is_pickle(self) -> bool:
        """Whether the place is a pickle by its suffix, and not a model folder."""
        place = self.location
        return (place.key if isinstance(place, S3Location) else place.name).lower().endswith(PICKLE_SUFFIXES)

    def with_absolute_path(self) -> ModelSource:
        """The same model, with a path that means the same from every working folder."""
        place = self.location
        return self if isinstance(place, S3Location) else self.model_copy(update={"uri": str(place.absolute())})

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        return parse_model(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _can_be_opened(self) -> Self:
        _location(self.uri)
        if self.is_pickle and self.sha256 is None:
            file = PurePosixPath(self.uri).name
            raise ValueError(
                f"model {self.name}: {self.uri} is a pickle, and opening a pickle can run code; to pin the file that "
                f"you trust, add `sha256: HEX`, where HEX is what `sha256sum {file}` prints"
            )
        return self


def parse_model(text: str) -> dict[str, str]:
    """Read the fields of an entry from `NAME=URI` or `NAME=URI@sha256:HEX`.

    Raises:
        ValueError: the text has another form.
    """
    name, equals, uri = text.partition("=")
    if not (name and equals and uri):
        raise ValueError(f"{text!r} is not NAME=URI or NAME=URI@sha256:HEX")
    if pinned := _PINNED.fullmatch(uri):
        return {"name": name, "uri": pinned[1], "sha256": pinned[2]}
    if "@sha256:" in uri:
        raise ValueError(f"{text!r} does not end with a SHA-256: after `@sha256:` must stand 64 hexadecimal digits")
    return {"name": name, "uri": uri}


def _location(uri: str) -> Path | S3Location:
    if not uri or not uri.isprintable():
        raise ValueError(f"{uri!r} is not a path or a URI; write FOLDER, file:///FOLDER or s3://BUCKET/FOLDER")
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return Path(uri)
    rest = uri[scheme.end() :]
    match scheme[1].lower():
        case "s3":
            bucket, _, key = rest.partition("/")
            if not _BUCKET.fullmatch(bucket):
                raise ValueError(f"{uri} names no valid bucket; write s3://BUCKET/FOLDER")
            return S3Location(bucket, key.rstrip("/"))
        case "file":
            return _file_path(uri)
        case other:
            raise ValueError(f"{uri}: models are read from folders and from s3://, not from {other}://")


def _file_path(uri: str) -> Path:
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or parts.query or parts.fragment:
        raise ValueError(f"{uri} is no file on this machine; write file:///FOLDER")
    if not path.isprintable():
        raise ValueError(f"{uri!r} is not a path or a URI; write FOLDER, file:///FOLDER or s3://BUCKET/FOLDER")
    return Path(path)
