"""Temporary folders that hold inputs while a request is checked.

A process that is killed leaves its folders behind. Each process removes such folders when it starts.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = "longcat-upload-"


@contextmanager
def upload_folder(parent: Path | None) -> Iterator[Path]:
    """Create a folder in `parent`, or in the system's temporary folder, and remove it at the end.

    The process locks the folder for as long as it lives. The folder gets the name by which
    `remove_abandoned_folders` finds it only after it is locked.
    """
    made = Path(tempfile.mkdtemp(dir=parent, prefix=f".{_NAME}"))
    folder = made.with_name(made.name.removeprefix("."))
    with _locked(made):
        made.rename(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned_folders(parent: Path | None) -> None:
    """Remove the folders whose processes have died."""
    for folder in Path(parent or tempfile.gettempdir()).glob(f"{_NAME}*"):
        with suppress(OSError), _locked(folder):  # skip folders that are in use, not ours, or just removed
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder. Raise BlockingIOError if another process has locked it."""
    with (folder / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
