"""Check that enough disk space is free to accept another job.

Without it the worker claims nothing, since every job would fail. Once videos were uploaded or somebody
cleaned up, it claims again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from worker.supervisor.threads import StoppableThread

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0


class DiskSpace(StoppableThread):
    """Watch the disks of some folders, which need not exist yet.

    It has a thread of its own because a network disk may block. `is_enough` is the result of the last check.
    """

    def __init__(
        self, folders: Sequence[Path], min_free_bytes: int, check_every_s: float = CHECK_EVERY_S
    ) -> None:
        super().__init__("disk-space")
        self._folders = folders
        self._min_free_bytes = min_free_bytes
        self._check_every_s = check_every_s
        self.is_enough = True

    def run(self) -> None:
        """Check the disks until stopped."""
        while not self.stopping.is_set():
            self.check()
            self.stopping.wait(self._check_every_s)

    def check(self) -> None:
        """Check every disk. One that cannot be asked counts as free."""
        full = [folder for folder in self._folders if _free_bytes(folder) < self._min_free_bytes]
        if full and self.is_enough:
            logger.error(
                "no job is claimed: less than %d bytes are free in %s", self._min_free_bytes, full[0]
            )
        elif not full and not self.is_enough:
            logger.info("enough disk space is free again")
        self.is_enough = not full


def _free_bytes(folder: Path) -> float:
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(existing).free
    except OSError:
        return float("inf")
