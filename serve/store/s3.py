"""Objects of S3, or of another server with its protocol, by boto3. No other module imports boto3.

boto3's managed transfer downloads an object in parts of 8 MiB, several at a time, and asks again for a part whose
stream breaks off. All parts after the first carry the ETag of the first (`If-Match`), so that they belong to the same
object. A start must end soon, well or badly: there are few attempts, with short timeouts. Every fault becomes an error
of one line that names the object and the cause. `downloads.py` compares digests of what was received.
"""

from __future__ import annotations

import logging
from typing import Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectionError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
)
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError, S3ValidationError

from serve.core.errors import InvalidModel, StartupError
from serve.settings.model_source import S3Location

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 10
"""Between two bytes of an answer."""
MAX_ATTEMPTS = 3
"""Of each request until its answer begins, and of each part of an object whose stream breaks off."""

_UNREACHABLE = (ConnectionError, ConnectionClosedError)
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_ABSENT = ("NoSuchBucket", "NoSuchKey", "404")
_CAUSES = {
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such object",
    "404": "there is no such object",
    "AccessDenied": "access is denied; the credentials lack s3:GetObject, or there is no such object",
    "403": "access is denied; the credentials lack s3:GetObject, or there is no such object",
    "InvalidAccessKeyId": "the server does not know the access key",
    "SignatureDoesNotMatch": "the credentials are wrong",
    "ExpiredToken": "the credentials have expired",
}
"""By S3's error codes."""

_log = logging.getLogger(__name__)


class S3:
    """One client, with the credentials and the region that boto3 finds.

    Args:
        endpoint_url: the address of a server other than AWS, or None.

    Raises:
        StartupError: boto3's configuration is wrong, such as a profile that does not exist.
    """

    def __init__(self, endpoint_url: str | None = None) -> None:
        try:
            self._client = _client(endpoint_url, {})
            if ".amazonaws.com" not in self._client.meta.endpoint_url:
                # Other servers seldom have a host name for each bucket.
                self._client = _client(endpoint_url, {"addressing_style": "path"})
        except (BotoCoreError, ValueError) as error:
            raise StartupError(
                f"S3 cannot be used: {_one_line(error)}; correct the AWS configuration (environment, ~/.aws) or "
                "store.s3_endpoint_url"
            ) from error

    def download(self, place: S3Location, file: BinaryIO) -> None:
        """Write an object into an empty file that is open for writing.

        Raises:
            InvalidModel: the bucket or the object does not exist.
            StartupError: the network, the server or the credentials failed, or the object was replaced meanwhile.
            OSError: the file cannot be written.
        """

        def on_progress(num_bytes: int) -> None:
            if num_bytes < 0:  # s3transfer takes back the progress of a broken stream
                _log.warning("%s broke off: downloading a part again, %d bytes were lost", place, -num_bytes)

        try:
            self._client.download_fileobj(place.bucket, place.key, file, Callback=on_progress, Config=_transfer())
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            kind = InvalidModel if code in _ABSENT else StartupError
            raise kind(f"{place} cannot be downloaded: {_CAUSES.get(code, _one_line(error))} ({code})") from error
        except (BotoCoreError, RetriesExceededError, S3DownloadFailedError, S3ValidationError) as error:
            raise StartupError(f"{place} cannot be downloaded: {self._cause(error)}") from error

    def _cause(self, error: Exception) -> str:
        broken = isinstance(error, RetriesExceededError)
        if isinstance(error, RetriesExceededError):
            error = error.last_exception
        said, endpoint = _one_line(error), self._client.meta.endpoint_url
        if isinstance(error, S3DownloadFailedError):
            return "the object was replaced while it was downloaded; start again"
        if isinstance(error, _NO_CREDENTIALS):
            return f"no AWS credentials were found ({said}); set them in the environment or ~/.aws, or use a role"
        if isinstance(error, ReadTimeoutError):
            return f"{endpoint} did not answer in time ({said})"
        if isinstance(error, _UNREACHABLE):
            return f"{endpoint} cannot be reached ({said})"
        return f"the connection broke off {MAX_ATTEMPTS} times ({said})" if broken else said


def _client(endpoint_url: str | None, s3: dict[str, str]) -> Any:
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        # With this value s3transfer begins with a GET, not with a HEAD, whose errors name no cause. SHA-256 digests
        # are compared later and make S3's own checksums superfluous.
        response_checksum_validation="when_required",
        s3=s3,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)


def _transfer() -> TransferConfig:
    # "classic" is boto3's own code: the other client, used where awscrt is installed, ignores attempts and timeouts.
    return TransferConfig(num_download_attempts=MAX_ATTEMPTS, preferred_transfer_client="classic")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
