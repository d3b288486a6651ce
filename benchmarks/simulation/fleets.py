"""Define which GPUs are free for the next job: fixed groups, or groups that are formed for each job."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

LARGEST_GROUP = 8


@dataclass(frozen=True)
class Group:
    """GPUs that run one job together."""

    name: str
    num_ranks: int


class Fleet(Protocol):
    """The GPUs of an installation."""

    num_groups: int
    num_gpus: int

    def take(self, num_waiting: int) -> Group | None:
        """Take a group for the next of the jobs that wait. Return None if no GPU is free."""
        ...

    def release(self, group: Group) -> None:
        """Return a group whose job has ended."""
        ...


class FixedGroups:
    """Groups of one size, which is what a worker has."""

    def __init__(self, num_groups: int, num_ranks: int) -> None:
        self.num_groups = num_groups
        self.num_gpus = num_groups * num_ranks
        self._idle = deque(Group(f"group-{number}", num_ranks) for number in range(num_groups))

    def take(self, num_waiting: int) -> Group | None:
        """Take the group that has been idle for the longest time."""
        return self._idle.popleft() if self._idle else None

    def release(self, group: Group) -> None:
        """Return a group."""
        self._idle.append(group)


class ElasticGroups:
    """A model of groups that are formed for each job: wide while few jobs wait, narrow while many do.

    It does not exist yet. A group keeps its size until its job ends.
    """

    def __init__(self, num_gpus: int) -> None:
        self.num_groups = self.num_gpus = num_gpus
        self._num_free = num_gpus

    def take(self, num_waiting: int) -> Group | None:
        """Take a share of the free GPUs, a power of two."""
        if not self._num_free:
            return None
        share = max(1, min(LARGEST_GROUP, self._num_free // max(1, num_waiting)))
        group = Group("elastic", 1 << (share.bit_length() - 1))
        self._num_free -= group.num_ranks
        return group

    def release(self, group: Group) -> None:
        """Return the GPUs of a group."""
        self._num_free += group.num_ranks
