"""Define which groups are free for the next job: fixed groups, or pods that come and go."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Protocol


@dataclass(frozen=True)
class Group:
    """GPUs that run one job together."""

    name: str
    num_ranks: int


class Fleet(Protocol):
    """The GPUs of an installation."""

    @property
    def num_groups(self) -> int:
        """Return the number of groups that are up."""
        ...

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


class Pods:
    """Worker pods of one GPU that a StatefulSet starts and removes: those with the highest numbers first."""

    def __init__(self) -> None:
        self._pods: list[Group] = []  # by number
        self._idle: deque[Group] = deque()
        self._starting: set[Group] = set()
        self._serial = count()

    def __len__(self) -> int:
        """Return the number of pods, also those that start."""
        return len(self._pods)

    def __contains__(self, pod: Group) -> bool:
        """Return whether a pod is there."""
        return pod in self._pods

    @property
    def num_groups(self) -> int:
        """Return the number of groups that are up."""
        return len(self._pods) - len(self._starting)

    @property
    def num_busy(self) -> int:
        """Return the number of groups that run a job."""
        return self.num_groups - len(self._idle)

    def add(self) -> Group:
        """Start a pod."""
        pod = Group(f"pod-{next(self._serial)}", 1)
        self._pods.append(pod)
        self._starting.add(pod)
        return pod

    def replace(self, pod: Group) -> Group:
        """Start a pod with the number of one that is gone."""
        number = self._pods.index(pod)
        new = self.add()
        self._pods[number] = self._pods.pop()
        self._forget(pod)
        return new

    def remove(self) -> Group:
        """Remove the pod with the highest number, also if it is at work."""
        pod = self._pods.pop()
        self._forget(pod)
        return pod

    def take(self, num_waiting: int) -> Group | None:
        """Take the pod that has been idle for the longest time."""
        return self._idle.popleft() if self._idle else None

    def release(self, group: Group) -> None:
        """Return a pod that has loaded the model, or whose job has ended."""
        self._starting.discard(group)
        self._idle.append(group)

    def _forget(self, pod: Group) -> None:
        self._starting.discard(pod)
        if pod in self._idle:
            self._idle.remove(pod)
