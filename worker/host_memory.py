"""Find out how much memory this machine has."""

import os
from contextlib import suppress
from pathlib import Path


def host_memory_bytes() -> int:
    """Return the memory of this machine, or of the container that this process runs in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no control groups, or no limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total
