"""Temporary folders that hold inputs while a request is checked.

A process that is killed leaves its folders behind. Each process removes such folders when it starts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.errors import DISK_FULL_ERRNOS, DiskFull, Unavailable

_NAME = "longcat-upload-"
_MIN_FREE_BYTES = 1 << 20  # a disk with less takes hardly any input


@contextmanager
def upload_folder(parent: Path | None) -> Iterator[Path]:
    """Create a folder in `parent`, or in the system's temporary folder, and remove it at the end.

    The process locks the folder for as long as it lives. The folder gets the name by which
    `remove_abandoned_folders` finds it only after it is locked. Raises DiskFull, also if the disk is full
    while the folder is used.
    """
    with disk_full_refused():
        made = Path(tempfile.mkdtemp(dir=parent, prefix=f".{_NAME}"))
        folder = made.with_name(made.name.removeprefix("."))
        try:
            with _locked(made):
                made.rename(folder)
                yield folder
        finally:
            for path in (made, folder):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def disk_full_refused() -> Iterator[None]:
    """Raise DiskFull for an OSError that says that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise DiskFull("the disk for uploads is full; try again later") from error
        raise


def check_disk_space(parent: Path | None) -> None:
    """Raise DiskFull if `parent`, or the system's temporary folder, has no space left for inputs."""
    try:
        free_bytes = shutil.disk_usage(parent or tempfile.gettempdir()).free
    except OSError as error:
        raise Unavailable(f"the folder for uploads cannot be used: {error.strerror}") from error
    if free_bytes < _MIN_FREE_BYTES:
        raise DiskFull("the disk for uploads is full")


def remove_abandoned_folders(parent: Path | None) -> None:
    """Remove the folders whose processes have died.

    Others can write to the system's temporary folder. In a folder of theirs, the lock may be a link to a file
    of ours, or a pipe that nobody reads.
    """
    for folder in Path(parent or tempfile.gettempdir()).glob(f"{_NAME}*"):
        with suppress(OSError):  # skip folders that are in use or just removed
            if folder.lstat().st_uid == os.geteuid():
                with _locked(folder):
                    shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder. Raise BlockingIOError if another process has locked it."""
    with (folder / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
