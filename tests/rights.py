"""Who may open the files of a folder."""

from __future__ import annotations

import stat
from pathlib import Path


def open_to_others(folder: Path) -> list[Path]:
    """The folder and what is in it, as far as users other than its owner have any right to it."""
    return [path for path in (folder, *folder.rglob("*")) if stat.S_IMODE(path.lstat().st_mode) & 0o077]
