"""Store files in S3 or a compatible store. Imported only where `s3://` is used; needs the extra `[s3]`.

Files are uploaded in parts, and appear when they are complete. No conditional writes are needed: results are
committed in Redis, and keys contain the attempt. boto3 retries a few times, the worker for hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from jobs.errors import KeyMissing, Unavailable
from jobs.settings import S3_TRIES, SharedSettings
from jobs.storage.folder import CHUNK_BYTES, write_atomically
from jobs.storage.keys import checked, checked_prefix

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 16 << 20
_MISSING = {"404", "NoSuchKey", "NotFound"}


class S3Storage:
    """Files under a prefix of a bucket. `linker` signs links for the address that clients use."""

    def __init__(self, client: S3Client, linker: S3Client, bucket: str, prefix: str) -> None:
        self._client = client
        self._linker = linker
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    @classmethod
    def open(cls, settings: SharedSettings) -> S3Storage:
        """Return the storage that `s3://bucket/prefix` in the settings names, without connecting to it."""
        bucket, _, prefix = settings.storage_location.removeprefix("s3://").partition("/")
        client = _client(settings, settings.s3_endpoint_url)
        public_url = settings.s3_public_endpoint_url
        return cls(client, _client(settings, public_url) if public_url else client, bucket, prefix)

    def put(self, key: str, path: Path, media_type: str) -> None:
        """See `jobs.storage.base.Storage`."""
        with _s3_errors(key):
            self._client.upload_file(
                str(path),
                self._bucket,
                self._name(key),
                ExtraArgs={"ContentType": media_type},
                Config=TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES),
            )

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `jobs.storage.base.Storage`."""
        size_bytes = self.size_bytes(key)
        return self._read(key, start, size_bytes if end is None else min(end, size_bytes))

    def size_bytes(self, key: str) -> int:
        """See `jobs.storage.base.Storage`."""
        with _s3_errors(key):
            return self._client.head_object(Bucket=self._bucket, Key=self._name(key))["ContentLength"]

    def fetch(self, key: str, path: Path) -> None:
        """See `jobs.storage.base.Storage`."""
        write_atomically(path, self.read(key))

    def delete_prefix(self, prefix: str, keep: tuple[str, ...] = ()) -> None:
        """See `jobs.storage.base.Storage`. Incomplete uploads are removed as well."""
        with _s3_errors(prefix):
            for key in self.keys(prefix):
                if not key.startswith(keep):
                    self._client.delete_object(Bucket=self._bucket, Key=self._name(key))
            uploads = self._client.get_paginator("list_multipart_uploads")
            for page in uploads.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for upload in page.get("Uploads", ()):
                    with suppress(self._client.exceptions.NoSuchUpload):  # another process aborted it
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )

    def keys(self, prefix: str) -> Iterator[str]:
        """See `jobs.storage.base.Storage`."""
        listing = self._client.get_paginator("list_objects_v2")
        with _s3_errors(prefix):
            for page in listing.paginate(Bucket=self._bucket, Prefix=self._prefix + checked_prefix(prefix)):
                for entry in page.get("Contents", ()):
                    yield entry["Key"].removeprefix(self._prefix)

    def check(self) -> None:
        """See `jobs.storage.base.Storage`. It takes one request, which needs the right to list the bucket."""
        try:
            with _s3_errors("the bucket"):
                self._client.head_bucket(Bucket=self._bucket)
        except KeyMissing as error:
            raise Unavailable("the bucket does not exist") from error

    def link(self, key: str, expires_s: float) -> str | None:
        """Return a presigned link, which is created without a request to the store."""
        return self._linker.generate_presigned_url(
            "get_object",
            Params={"Bucket": self._bucket, "Key": self._name(key)},
            ExpiresIn=round(expires_s),
        )

    def _read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        if start >= end:
            return
        with _s3_errors(key):
            found = self._client.get_object(
                Bucket=self._bucket, Key=self._name(key), Range=f"bytes={start}-{end - 1}"
            )
            with closing(found["Body"]) as body:
                yield from body.iter_chunks(CHUNK_BYTES)

    def _name(self, key: str) -> str:
        return self._prefix + checked(key)


def _client(settings: SharedSettings, endpoint_url: str | None) -> S3Client:
    """Return a client with explicit timeouts. Without keys in the settings, boto3 finds its own."""
    key_id, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=key_id.get_secret_value() if key_id else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            connect_timeout=settings.s3_connect_timeout_s,
            read_timeout=settings.s3_read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": S3_TRIES},
            signature_version="s3v4",
            request_checksum_calculation="when_required",  # stores other than AWS know no trailing checksums
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if endpoint_url else "auto"},
        ),
    )


@contextmanager
def _s3_errors(key: str) -> Iterator[None]:
    """Raise KeyMissing or Unavailable for errors of boto3."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in _MISSING:
            raise KeyMissing(f"nothing is stored under {key}") from error
        raise Unavailable(f"the store refused {key}: {code}") from error
    except (BotoCoreError, Boto3Error) as error:
        raise Unavailable("the store cannot be reached") from error
