"""Objects of S3, or of a server that speaks its protocol, by boto3; nothing else imports it.

A start must end soon, well or badly: few attempts, short timeouts. boto3 tries a request again until it has headers; a
stream that breaks after them is taken up here where it broke, of the very same object (`If-Match`). Whatever goes
wrong is a StartupError that names the object in one line. What was received is not trusted here: `downloads.py`
compares digests.
"""

from __future__ import annotations

import logging
from typing import Any, BinaryIO

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectionError,
    CredentialRetrievalError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from serve.core.errors import InvalidModel, StartupError
from serve.settings.model_source import S3Location

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20
MAX_ATTEMPTS = 3
"""Of one request; as many again for each stream that broke."""

_CHUNK_BYTES = 2**20
_BROKEN_STREAM = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
_UNREACHABLE = (ConnectionError, ConnectionClosedError, ReadTimeoutError)
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_ABSENT = ("NoSuchBucket", "NoSuchKey", "404")
_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such object",
    "404": "there is no such object",
    "AccessDenied": "access is denied; the credentials lack s3:GetObject, or there is no such object",
    "403": "access is denied; the credentials lack s3:GetObject, or there is no such object",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the credentials are wrong",
    "ExpiredToken": "the credentials have expired",
    "PreconditionFailed": "the object was replaced while it was downloaded",
}

_log = logging.getLogger(__name__)


class S3:
    """One client, with credentials and region as boto3 finds them."""

    def __init__(self, endpoint_url: str | None = None) -> None:
        try:
            self._client = _client(endpoint_url, {})
            if ".amazonaws.com" not in self._client.meta.endpoint_url:
                # Other servers seldom have a host name for each bucket.
                self._client = _client(endpoint_url, {"addressing_style": "path"})
        except (BotoCoreError, ValueError) as error:
            raise StartupError(f"S3 cannot be used: {_one_line(error)}") from error

    def download(self, place: S3Location, file: BinaryIO) -> None:
        """Append an object to a file that is open for writing.

        Raises:
            InvalidModel: there is no such bucket or object.
            StartupError: it cannot be had, by whatever fault of network, server or credentials.
            OSError: the file cannot be written.
        """
        start, etag = file.tell(), None
        for attempt in range(1, MAX_ATTEMPTS + 1):
            answer = self._open(place, file.tell() - start, etag)
            etag = answer["ETag"]
            try:
                for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                    file.write(chunk)
                return
            except _BROKEN_STREAM as error:
                _log.warning("%s broke off, attempt %d of %d: %s", place, attempt, MAX_ATTEMPTS, _one_line(error))
                last = error
            except BotoCoreError as error:
                raise self._explained(place, error) from error
        raise StartupError(f"{place} cannot be downloaded: it broke off {MAX_ATTEMPTS} times ({_one_line(last)})")

    def _open(self, place: S3Location, start: int, etag: str | None) -> Any:
        """The answer whose body holds the object from this byte on."""
        rest = {"Range": f"bytes={start}-", "IfMatch": etag} if start else {}
        try:
            return self._client.get_object(Bucket=place.bucket, Key=place.key, **rest)
        except (BotoCoreError, ClientError) as error:
            raise self._explained(place, error) from error

    def _explained(self, place: S3Location, error: BotoCoreError | ClientError) -> StartupError:
        said = _one_line(error)
        if isinstance(error, ClientError):
            code = error.response.get("Error", {}).get("Code", "")
            kind = InvalidModel if code in _ABSENT else StartupError
            return kind(f"{place} cannot be downloaded: {_REASONS.get(code, said)} ({code})")
        if isinstance(error, _NO_CREDENTIALS):
            said = f"no AWS credentials were found ({said})"
        elif isinstance(error, _UNREACHABLE):
            said = f"{self._client.meta.endpoint_url} cannot be reached ({said})"
        return StartupError(f"{place} cannot be downloaded: {said}")


def _client(endpoint_url: str | None, s3: dict[str, str]) -> Any:
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        s3=s3,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
