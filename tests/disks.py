"""Mount small disks that a test can make read-only, or leave without inodes. Only root can."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import wait_until

SIZE_BYTES, NUM_INODES = 1 << 24, 200


@dataclass(frozen=True)
class Disk:
    """A disk that is mounted at `folder`."""

    folder: Path
    size_bytes: int = SIZE_BYTES

    def make_read_only(self) -> None:
        """Let nobody write, as soon as no file is open for writing."""
        wait_until(lambda: self._remount("ro"))

    def use_all_inodes(self) -> None:
        """Create files until there can be no other."""
        for number in itertools.count():
            try:
                self._filler(number).touch()
            except OSError:
                return

    def repair(self) -> None:
        """Undo either of these."""
        assert self._remount("rw")
        for file in self.folder.glob(self._filler("*").name):
            file.unlink()

    def _filler(self, number: object) -> Path:
        return self.folder / f"filler-{number}"

    def _remount(self, mode: str) -> bool:
        return _succeeds("mount", "-o", f"remount,{mode}", str(self.folder))


BREAKS: dict[str, Callable[[Disk], None]] = {
    "read-only": Disk.make_read_only,
    "no inodes": Disk.use_all_inodes,
}


@contextmanager
def mounted_disk(folder: Path) -> Iterator[Disk]:
    """Mount a disk at a folder. Skip the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={SIZE_BYTES},nr_inodes={NUM_INODES}"
    if not _succeeds("mount", "-t", "tmpfs", "-o", options, "disk", str(folder)):
        pytest.skip("only root may mount a disk")
    try:
        yield Disk(folder)
    finally:
        assert _succeeds("umount", "--lazy", str(folder))


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
