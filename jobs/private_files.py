"""Create files and folders that only the user of this process may open.

The API and the worker set `PRIVATE_UMASK` when they start, so everything that they create is private.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

PRIVATE_UMASK = 0o077


def make_private_folder(folder: Path) -> None:
    """Create a private folder and its missing parents. Existing ones stay unchanged."""
    if not folder.exists():
        make_private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def close_to_others(path: Path) -> None:
    """Remove all permissions of other users from a file or folder, if it exists and this user owns it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    if found.st_uid == os.geteuid():
        path.chmod(stat.S_IMODE(found.st_mode) & ~PRIVATE_UMASK)


def private_opener(path: str, flags: int) -> int:
    """Open a file for `open(…, opener=…)`. A file that this creates is private."""
    return os.open(path, flags, 0o600)
