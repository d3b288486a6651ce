"""Read weights from S3 or a compatible store. Imported only for `s3://`; needs the extra `[s3]`."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from pydantic import ValidationError

from model.weights.manifest import MANIFEST, WeightFile, WeightsError, check_paths
from model.weights.source import (
    CHUNK_BYTES,
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    Listing,
    S3Access,
    SourceError,
    SourceUnavailable,
    parse_manifest,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

_RETRYABLE = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}


class S3Source:
    """A folder of weights in a bucket, with or without a `weights.json`."""

    def __init__(self, url: str, connections: int, access: S3Access) -> None:
        """Read from `s3://bucket/prefix`. Raises WeightsError if boto3 refuses the settings."""
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.name = f"s3://{self._bucket}/{self._prefix}"
        self._connections = connections
        self._access = access
        self._client = self._connect(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)

    def list_files(self, timeout_s: float | None = None) -> Listing:
        """See `model.weights.source.Source`. Without a manifest, the listing of the bucket is used."""
        if timeout_s is None:
            return self._list(self._client)
        with closing(self._connect(timeout_s, timeout_s)) as client:
            return self._list(client)

    def read(self, file: WeightFile, start: int, end: int) -> Iterator[bytes]:
        """See `model.weights.source.Source`. A file of a listing is read in the version that was listed."""
        wanted = {"IfMatch": file.etag} if file.etag else {}
        with _s3_errors(file.path):
            found = self._client.get_object(
                Bucket=self._bucket,
                Key=self._prefix + file.path,
                Range=f"bytes={start}-{end - 1}",
                **wanted,  # type: ignore[arg-type]
            )
            with closing(found["Body"]) as body:
                yield from body.iter_chunks(CHUNK_BYTES)

    def close(self) -> None:
        """See `model.weights.source.Source`."""
        self._client.close()

    def _connect(self, connect_timeout_s: float, read_timeout_s: float) -> S3Client:
        try:
            return boto3.client(
                "s3",
                endpoint_url=self._access.endpoint_url,
                region_name=self._access.region,
                aws_access_key_id=self._access.access_key_id,
                aws_secret_access_key=self._access.secret_access_key,
                config=Config(
                    connect_timeout=connect_timeout_s,
                    read_timeout=read_timeout_s,
                    retries={"total_max_attempts": 1},  # a fetch repeats requests itself
                    max_pool_connections=self._connections,
                    signature_version="s3v4",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "path" if self._access.endpoint_url else "auto"},
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise WeightsError(f"S3 cannot be used: {error}") from error

    def _list(self, client: S3Client) -> Listing:
        try:
            with _s3_errors(MANIFEST):
                found = client.get_object(Bucket=self._bucket, Key=self._prefix + MANIFEST)
                with closing(found["Body"]) as body:
                    blocks = body.iter_chunks(CHUNK_BYTES)
                    return Listing(parse_manifest(blocks, f"{MANIFEST} of the source").files)
        except _KeyMissing:
            return Listing(self._list_bucket(client), has_hashes=False)

    def _list_bucket(self, client: S3Client) -> tuple[WeightFile, ...]:
        """Return all files under the prefix but hidden ones, with what S3 knows of their content."""
        files = []
        with _s3_errors("the bucket"):
            for page in client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            ):
                for entry in page.get("Contents", ()):
                    path = entry["Key"].removeprefix(self._prefix)
                    if not path.endswith("/") and not any(name.startswith(".") for name in path.split("/")):
                        files.append(self._describe(client, path))
        if not files:
            raise SourceError(f"{self.name} has no files")
        try:
            check_paths(files)
        except ValueError as error:
            raise SourceError(str(error)) from error
        return tuple(files)

    def _describe(self, client: S3Client, path: str) -> WeightFile:
        with _s3_errors(path):
            head = client.head_object(Bucket=self._bucket, Key=self._prefix + path, ChecksumMode="ENABLED")
        try:
            return WeightFile(
                path=path,
                size_bytes=head["ContentLength"],
                sha256=_sha256(head),
                etag=head["ETag"],
                md5=_md5(head),
            )
        except ValidationError as error:
            raise SourceError(f"{path!r}: {error.errors()[0]['msg']}") from error


def _sha256(head: HeadObjectOutputTypeDef) -> str | None:
    """Return the SHA-256 of an object in hexadecimal digits, None if S3 has only one of its parts."""
    checksum = head.get("ChecksumSHA256", "")
    return None if not checksum or "-" in checksum else base64.b64decode(checksum).hex()


def _md5(head: HeadObjectOutputTypeDef) -> str | None:
    """Return the ETag if it is the MD5 of the object: not of one in parts, or encrypted with another key."""
    etag = head["ETag"].strip('"')
    is_md5 = head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head
    return etag if is_md5 and len(etag) == 32 else None


class _KeyMissing(SourceError):
    pass


@contextmanager
def _s3_errors(name: str) -> Iterator[None]:
    """Raise SourceError for errors of boto3."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        metadata = error.response["ResponseMetadata"]
        if code in {"404", "NoSuchKey"}:
            raise _KeyMissing(f"{name}: is not in the bucket") from error
        if metadata["HTTPStatusCode"] >= 500 or code in _RETRYABLE:
            pause = metadata["HTTPHeaders"].get("retry-after", "")
            raise SourceUnavailable(
                f"{name}: S3 answers with {code}", float(pause.isdecimal() and pause)
            ) from error
        raise SourceError(f"{name}: S3 answers with {code}") from error
    except (BotoConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError) as error:
        raise SourceUnavailable(f"{name}: {type(error).__name__}") from error
    except BotoCoreError as error:  # such as missing credentials
        raise SourceError(f"{name}: {error}") from error
