"""Store files in a folder that the service and the workers share. Files appear when complete."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from jobs.errors import DISK_FULL_ERRNOS, DiskFull, KeyMissing, Unavailable
from jobs.storage.keys import checked, checked_prefix

CHUNK_BYTES = 256 << 10  # each download that its client does not read holds one in memory


class FolderStorage:
    """Files in a folder that the service and the workers share."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def put(self, key: str, path: Path, media_type: str) -> None:
        """See `Storage`. The media type follows from the key's suffix."""
        del media_type
        target = self._path(key)
        with path.open("rb") as source:
            write_atomically(target, _chunks(source, path.stat().st_size))

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `Storage`. A file that is removed meanwhile is read to its end."""
        chunks = self._read(key, start, end)
        next(chunks)  # opens the file
        return chunks

    def size_bytes(self, key: str) -> int:
        """See `Storage`."""
        with _reading(key):
            path = self._path(key)
            if path.is_dir():
                raise IsADirectoryError
            return path.stat().st_size

    def fetch(self, key: str, path: Path) -> None:
        """See `Storage`."""
        write_atomically(path, self.read(key))

    def delete_prefix(self, prefix: str, keep: tuple[str, ...] = ()) -> None:
        """See `Storage`. Files whose writer died are removed as well."""
        folder = self._root / checked_prefix(prefix)
        with _disk_errors(prefix):
            for parent, _, names in os.walk(folder, topdown=False, onerror=_unless_gone):
                for path in (Path(parent, name) for name in names):
                    if not (self._is_key(path) and self._key(path).startswith(keep)):
                        path.unlink(missing_ok=True)
                with suppress(OSError):  # it is not empty, or another process removed it
                    Path(parent).rmdir()

    def keys(self, prefix: str) -> Iterator[str]:
        """See `Storage`. Files that are still being written are left out."""
        folder = self._root / checked_prefix(prefix)
        for path in sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names):
            if self._is_key(path):
                yield self._key(path)

    def check(self) -> None:
        """See `Storage`. A folder that does not exist yet can be created if its parent is writable."""
        existing = next(path for path in (self._root, *self._root.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise Unavailable("the storage folder cannot be written")

    def link(self, key: str, expires_s: float) -> str | None:
        """Return None: a folder has no links."""
        del expires_s
        checked(key)
        return None

    def _read(self, key: str, start: int, end: int | None) -> Iterator[bytes]:
        with _reading(key), self._path(key).open("rb") as file:
            yield b""
            file.seek(start)
            yield from _chunks(file, (os.fstat(file.fileno()).st_size if end is None else end) - start)

    @staticmethod
    def _is_key(path: Path) -> bool:
        """Return whether a file is complete; see `write_atomically`."""
        return not path.name.startswith(".")

    def _key(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _path(self, key: str) -> Path:
        return self._root / checked(key)


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """Write chunks to a file that appears under its name only when it is complete and on the disk.

    Raises DiskFull, Unavailable.
    """
    with _disk_errors(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False)  # noqa: SIM115
        try:
            with part:
                part.writelines(chunks)
                part.flush()
                os.fsync(part.fileno())
            Path(part.name).replace(path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _chunks(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    while size_bytes > 0 and (chunk := file.read(min(CHUNK_BYTES, size_bytes))):
        size_bytes -= len(chunk)
        yield chunk


@contextmanager
def _reading(key: str) -> Iterator[None]:
    with _disk_errors(key):
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise KeyMissing(f"nothing is stored under {key}") from error


@contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    """Raise DiskFull or Unavailable for errors of the file system."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise DiskFull(f"the disk is full: cannot store {name}") from error
        raise Unavailable(f"{name} cannot be reached: {error.strerror}") from error
