"""Where inputs, saved states and videos lie: a folder or an S3 store, behind one Protocol.

The service stores inputs and reads videos, the worker the other way round. Keys come from
`jobs.storage.keys`. It does not know jobs: what is current is said by the record in Redis alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from jobs.private_files import close_to_others
from jobs.settings import SharedSettings
from jobs.storage.folder import FolderStorage


class Storage(Protocol):
    """Files under keys.

    All methods raise Unavailable while the store cannot be reached, and ValueError for what is no key.
    """

    def put(self, key: str, path: Path, media_type: str) -> None:
        """Store a file, streamed; under `key` there is nothing until all of it is there. Raises DiskFull."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to before `end`, in chunks. Raises KeyMissing before any is asked for."""

    def size_bytes(self, key: str) -> int:
        """How large the file is. Raises KeyMissing."""

    def fetch(self, key: str, path: Path) -> None:
        """Copy to a local file, which appears when it is complete. Raises KeyMissing, DiskFull."""

    def delete_prefix(self, prefix: str, keep: tuple[str, ...] = ()) -> None:
        """Remove everything under a prefix that ends in a slash, but for what is under those to `keep`.

        What was never stored whole goes wherever it is. Nothing there is no error.
        """

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys under a prefix that ends in a slash."""

    def link(self, key: str, expires_s: float) -> str | None:
        """A link by which anyone can read the file for `expires_s` seconds; None if the store has none."""


def open_storage(settings: SharedSettings) -> Storage:
    """Open the storage that `LONGCAT_STORAGE` names.

    A folder that the operator named keeps its rights: a web server may have some. Our own is closed.
    """
    if settings.storage_folder:
        if not settings.storage:
            close_to_others(settings.storage_folder)
        return FolderStorage(settings.storage_folder)
    from jobs.storage.s3 import S3Storage  # noqa: PLC0415 - boto3 is needed by nobody else

    return S3Storage.open(settings)
