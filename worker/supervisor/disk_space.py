"""Check that the disks can take the files of another job.

Without it the worker claims nothing, since every job would fail. Once videos were uploaded or somebody
repaired the disk, it claims again.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from worker.supervisor.threads import StoppableThread

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0


class DiskSpace(StoppableThread):
    """Watch the disks of some folders, which need not exist yet.

    `check_writable` writes to the spool; a disk for which it raises OSError counts as full: it may be
    read-only, belong to another user, or have no inodes left.

    It has a thread of its own because a network disk may block. `is_enough` is the result of the last check.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        min_free_bytes: int,
        check_writable: Callable[[], None] = lambda: None,
        check_every_s: float = CHECK_EVERY_S,
    ) -> None:
        super().__init__("disk-space")
        self._folders = folders
        self._min_free_bytes = min_free_bytes
        self._check_writable = check_writable
        self._check_every_s = check_every_s
        self._lock = threading.Lock()
        self._shortage: str | None = None
        self.is_enough = True

    def run(self) -> None:
        """Check the disks until stopped."""
        while not self.stopping.is_set():
            self.check()
            self.stopping.wait(self._check_every_s)

    def check(self) -> bool:
        """Check every disk, and return whether all can take files. Any thread may call it."""
        with self._lock:
            shortage = self._find_shortage()
            if shortage and shortage != self._shortage:
                logger.error("no job is claimed: %s", shortage)
            elif self._shortage and not shortage:
                logger.info("the disks take files again")
            self._shortage, self.is_enough = shortage, shortage is None
            return self.is_enough

    def _find_shortage(self) -> str | None:
        """Return why a disk cannot take files. One whose free space cannot be asked counts as free."""
        for folder in self._folders:
            if _free_bytes(folder) < self._min_free_bytes:
                return f"less than {self._min_free_bytes} bytes are free in {folder}"
        try:
            self._check_writable()
        except OSError as error:
            return f"the spool cannot be written: {error.strerror or error}"
        return None


def _free_bytes(folder: Path) -> float:
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(existing).free
    except OSError:
        return float("inf")
