"""Files and folders that only the user of this process may open.

The API and the worker set `PRIVATE_UMASK` when they start, so everything that they make is private.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

PRIVATE_UMASK = 0o077


def make_private_folder(folder: Path) -> None:
    """Make a folder and its missing parents for this user alone. One that is there stays as it is."""
    if not folder.exists():
        make_private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def close_to_others(path: Path) -> None:
    """Take all rights to a file or folder from others, if it is there and belongs to this user."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    if found.st_uid == os.geteuid():
        path.chmod(stat.S_IMODE(found.st_mode) & ~PRIVATE_UMASK)


def private_opener(path: str, flags: int) -> int:
    """Open a file for `open(…, opener=…)`; if this makes the file, others cannot read it."""
    return os.open(path, flags, 0o600)
