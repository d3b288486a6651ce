"""Store inputs, checkpoints and videos in a folder or in S3, behind one Protocol.

The service stores inputs and reads videos; the worker reads inputs and stores videos. Keys come from
`jobs.storage.keys`. The storage knows no jobs: only the record in Redis says which files are current.
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

    All methods raise Unavailable while the store cannot be reached, and ValueError for an invalid key.
    """

    def put(self, key: str, path: Path, media_type: str) -> None:
        """Store a file. It appears under `key` when it is complete. Raises DiskFull."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return the bytes from `start` to before `end`, in chunks. Raises KeyMissing at once."""

    def size_bytes(self, key: str) -> int:
        """Return the size of a file. Raises KeyMissing."""

    def fetch(self, key: str, path: Path) -> None:
        """Copy a file to `path`, where it appears when it is complete. Raises KeyMissing, DiskFull."""

    def delete_prefix(self, prefix: str, keep: tuple[str, ...] = ()) -> None:
        """Remove all files under a prefix that ends in a slash, except those under the prefixes to `keep`.

        Incomplete uploads are removed everywhere. An empty prefix is no error.
        """

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield all keys under a prefix that ends in a slash."""

    def check(self) -> None:
        """Check that the store answers and may be used. Raises Unavailable if not."""

    def link(self, key: str, expires_s: float) -> str | None:
        """Return a link by which anyone can read the file for `expires_s`; None if the store has no links."""


def open_storage(settings: SharedSettings) -> Storage:
    """Open the storage that `LONGCAT_STORAGE` names.

    A folder that the operator named keeps its permissions: a web server may need them. The default folder
    becomes private.
    """
    if settings.storage_folder:
        if not settings.storage:
            close_to_others(settings.storage_folder)
        return FolderStorage(settings.storage_folder)
    from jobs.storage.s3 import S3Storage  # noqa: PLC0415 - boto3 is needed by nobody else

    return S3Storage.open(settings)
