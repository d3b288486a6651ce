"""Keep the first failure of a group's ranks in a file, from the rank that failed to the supervisor.

When a rank ends, the collectives of the others fail, too, and theirs may be the first error that the
supervisor hears of. So each rank writes its own before it ends, and the first one stays.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

FAILURE = "first-failure"
"""The name of the file in the folder in which the ranks of one start meet."""
MAX_LENGTH = 1000  # it is part of every status of the group


def write_failure(file: Path | None, rank: int, reason: str) -> None:
    """Write why a rank ends, unless another one has done so. Without a file, do nothing."""
    if file is None:
        return
    # OSError: another rank was first, or the supervisor has removed the folder.
    with suppress(OSError), NamedTemporaryFile("w", dir=file.parent) as part:
        part.write(f"rank {rank}: {reason}"[:MAX_LENGTH])
        part.flush()
        os.link(part.name, file)  # atomic: it fails if the file exists


def read_failure(file: Path) -> str | None:
    """Return why the first rank of a group ended, None if none has written a reason."""
    try:
        return file.read_text()
    except OSError:
        return None
