"""Keep a file that is being fetched: which of its ranges are on the disk, and the hash of its beginning."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from model.weights.manifest import WeightFile

_READ_BYTES = 1 << 20


class Part:
    """A file of which some ranges are on the disk. Different threads may write different ranges.

    The finished ranges are recorded in a journal, so that another process can resume. The file is hashed
    while it is fetched: whenever the ranges at its beginning are finished, they are read back from the page
    cache. The journal may be wrong after a loss of power, which the hash shows.

    Args:
        file: the file that is fetched.
        folder: where parts are kept. Their names depend on content and range size.
        range_bytes: the size of a range, 0 for one range of the whole file.
    """

    def __init__(self, file: WeightFile, folder: Path, range_bytes: int) -> None:
        self.file = file
        self._range_bytes = range_bytes or max(1, file.size_bytes)
        version = f"{file.path}\n{file.size_bytes}\n{file.sha256 or file.etag}\n{self._range_bytes}"
        name = hashlib.sha256(version.encode()).hexdigest()[:32]
        self.data_path = folder / f"{name}.part"
        self.journal_path = folder / f"{name}.ranges"
        self._lock = threading.Lock()
        self._finished = self._read_journal()
        self._starts = range(0, max(1, file.size_bytes), self._range_bytes)
        self._begin_hash()

    def missing_ranges(self) -> Sequence[tuple[int, int]]:
        """Return start and end of each range that is not finished."""
        size = self.file.size_bytes
        missing = (start for start in self._starts if start not in self._finished)
        return [(start, min(start + self._range_bytes, size)) for start in missing]

    @property
    def missing_bytes(self) -> int:
        """Return the sum of the missing ranges."""
        return sum(end - start for start, end in self.missing_ranges())

    @property
    def allocated_bytes(self) -> int:
        """Return the disk space that the part takes."""
        return self.data_path.stat().st_blocks * 512 if self.data_path.exists() else 0

    def open_at(self, offset: int) -> BinaryIO:
        """Open the part for writing one range. Raises OSError."""
        file = os.fdopen(os.open(self.data_path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        file.seek(offset)
        return file

    def finish_range(self, start: int) -> bool:
        """Record a range that is written. Return True for the last one of the file. Raises OSError."""
        with self._lock:
            self._finished.add(start)
            with self.journal_path.open("a") as journal:
                journal.write(f"{start}\n")
            self._advance_hash()
            return not self.missing_ranges()

    def matches(self) -> bool:
        """Return whether the content is that of the file, as far as its source told. All ranges are finished.

        Raises OSError.
        """
        with self._lock:
            self._advance_hash()
            expected = [
                (self.file.sha256, self._sha256.hexdigest()),
                (self.file.md5, self._md5.hexdigest()),
            ]
        is_whole = self._hashed_bytes == self.file.size_bytes
        return is_whole and all(wanted in (None, found) for wanted, found in expected)

    def reset(self) -> None:
        """Forget all ranges. Raises OSError."""
        with self._lock:
            self.discard()
            self._finished.clear()
            self._begin_hash()

    def install(self, path: Path) -> WeightFile:
        """Give the file its name, and return its description with its SHA-256. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.data_path.open("rb") as data:
            os.fsync(data.fileno())
        self.data_path.replace(path)
        self.discard()
        return self.file.with_sha256(self._sha256.hexdigest())

    def discard(self) -> None:
        """Remove the part from the disk. Raises OSError."""
        self.journal_path.unlink(missing_ok=True)
        self.data_path.unlink(missing_ok=True)

    def _begin_hash(self) -> None:
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._hashed_bytes = 0

    def _advance_hash(self) -> None:
        """Hash the finished ranges that follow on what was hashed."""
        if self._hashed_bytes not in self._finished:
            return
        with self.data_path.open("rb") as data:
            data.seek(self._hashed_bytes)
            while self._hashed_bytes in self._finished and self._hashed_bytes < self.file.size_bytes:
                end = min(self._hashed_bytes + self._range_bytes, self.file.size_bytes)
                while self._hashed_bytes < end:
                    block = data.read(min(_READ_BYTES, end - self._hashed_bytes))
                    if not block:  # the file system lost it
                        return
                    self._hash(block)

    def _hash(self, block: bytes) -> None:
        self._hashed_bytes += len(block)
        self._sha256.update(block)
        if self.file.md5 is not None:
            self._md5.update(block)

    def _read_journal(self) -> set[int]:
        if not (self.data_path.exists() and self.journal_path.exists()):
            return set()
        lines = self.journal_path.read_text(errors="replace").split("\n")[
            :-1
        ]  # the last one may be incomplete
        return {int(line) for line in lines if line.isdecimal()}
