"""Whether the disks have room for one more job. A worker without it takes none: each would only fail there.

A thread of the supervisor looks now and then, since a disk that hangs holds up who asks it. It does not know
what takes the room; when films were stored, or somebody cleaned up, jobs are taken again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Event

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class DiskSpace:
    """The room on the disks of these folders, which need not be there; `is_enough` as of the last look."""

    def __init__(self, folders: Sequence[Path], min_free_bytes: int) -> None:
        self._folders = folders
        self._min_free_bytes = min_free_bytes
        self.is_enough = True

    def look(self) -> None:
        """See how much is free on each disk; one that cannot be asked is for others to complain of."""
        full = [folder for folder in self._folders if _free_bytes(folder) < self._min_free_bytes]
        if full and self.is_enough:
            logger.error("no job is taken: less than %d bytes are free in %s", self._min_free_bytes, full[0])
        elif not full and not self.is_enough:
            logger.info("there is room again")
        self.is_enough = not full

    def keep_looking(self, stop: Event, every_s: float = LOOK_EVERY_S) -> None:
        """Look now and then until `stop` is set; a thread's body."""
        while not stop.is_set():
            self.look()
            stop.wait(every_s)


def _free_bytes(folder: Path) -> float:
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(there).free
    except OSError:
        return float("inf")
