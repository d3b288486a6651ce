"""Folders in which inputs lie while a request is checked; those of a process that was killed are removed.

Called by whoever takes files in, and once by each process when it starts.
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
    """A folder for one request, gone after it. `parent` is where it lies; None: among temporary files.

    It is locked by its process for as long as that lives, and gets the name by which it is found after that.
    """
    made = Path(tempfile.mkdtemp(dir=parent, prefix=f".{_NAME}"))
    folder = made.with_name(made.name.removeprefix("."))
    with _locked(made):
        made.rename(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path | None) -> None:
    """Remove the folders there whose process is dead."""
    for folder in Path(parent or tempfile.gettempdir()).glob(f"{_NAME}*"):
        with suppress(OSError), _locked(folder):  # or it is somebody else's, or just gone
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises BlockingIOError if another has it locked."""
    with (folder / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
