"""Find out how much memory this machine has."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def host_memory_bytes(cgroups: Path = CGROUPS, own_groups: Path = Path("/proc/self/cgroup")) -> int:
    """Return the memory of this machine, or what the control groups of this process allow if that is less.

    Args:
        cgroups: where control groups are mounted.
        own_groups: the file that names those of this process.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_limits(cgroups, own_groups)])


def _limits(cgroups: Path, own_groups: Path) -> Iterator[int]:
    """Yield the limits of the control groups of this process, and of those around them."""
    for path in _limit_files(cgroups, own_groups):
        with suppress(OSError, ValueError):  # there is no such group, or it has no limit
            yield int(path.read_text())


def _limit_files(cgroups: Path, own_groups: Path) -> Iterator[Path]:
    """Yield the files with limits, of version 2 and 1 of control groups. Some of them may not exist.

    In a container, the groups have other paths than `own_groups` says, but the container's own is at the top.
    """
    yield cgroups / "memory.max"
    yield cgroups / "memory" / "memory.limit_in_bytes"
    with suppress(OSError):
        for line in own_groups.read_text().splitlines():
            _, kinds, group = line.split(":", 2)  # version 2 has no kinds
            if kinds and "memory" not in kinds.split(","):
                continue
            top = cgroups / "memory" if kinds else cgroups
            for each in (Path(group), *Path(group).parents):
                yield top / each.relative_to("/") / ("memory.limit_in_bytes" if kinds else "memory.max")
