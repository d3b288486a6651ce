"""Define the states of the supervisor, its GPU group and its jobs, and the allowed transitions.

`TRANSITIONS` is the only list of what may follow what. `change` checks it, so that a mistake in the
supervisor's logic ends the process instead of losing a job: the launcher then starts another supervisor.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar


class SupervisorState(Enum):
    """The state of the supervisor as a whole.

    Attributes:
        SERVING: it keeps a GPU group running and claims jobs for it.
        DRAINING: it claims nothing. Its jobs are saved and requeued, or finished.
        TERMINATING: the drain took too long. The group is killed, and only requeueing is waited for.
        STOPPED: nothing is in hand, or nothing more can be done about it.
    """

    SERVING = "serving"
    DRAINING = "draining"
    TERMINATING = "terminating"
    STOPPED = "stopped"


class GpuGroupState(Enum):
    """The state of the processes of the GPU group.

    Attributes:
        DOWN: there are none; the next start is due at once.
        STARTING: torchrun and its ranks load the model.
        READY: all ranks wait for a job or run one.
        BACKING_OFF: the last start failed, and the next one waits.
    """

    DOWN = "down"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing off"


class JobState(Enum):
    """The state of a claimed job.

    Attributes:
        FETCHING: its inputs and its checkpoint are downloaded.
        WAITING: it can run as soon as the GPUs are free.
        RUNNING: it has the GPUs.
        DECODING: it has the GPUs for its last decode, so the next job may be claimed.
        WRITING: rank 0 writes the rest of its video; the GPUs are free.
        FINALIZING: its outcome is being recorded. The GPU group has nothing more to do for it.
        DONE: its outcome is recorded, or left to the end of its lease.
    """

    FETCHING = "fetching"
    WAITING = "waiting"
    RUNNING = "running"
    DECODING = "decoding"
    WRITING = "writing"
    FINALIZING = "finalizing"
    DONE = "done"


class WorldJobState(Enum):
    """The state of a job in a world, whose jobs change their ranks.

    Attributes:
        WAITING: it has no ranks yet, or has stopped to get others, as when those had too little memory.
        RUNNING: it has a block of ranks.
        RESIZING: it is told to stop after its current step, because it gets another block.
        DECODING: it keeps its block until the end, unless it runs out of memory.
        RELEASED: its leader writes the rest of its video; the block is free.
    """

    WAITING = "waiting for ranks"
    RUNNING = "running on a block"
    RESIZING = "resizing"
    DECODING = "decoding on a block"
    RELEASED = "released"


ON_GPUS = frozenset({JobState.RUNNING, JobState.DECODING})
WITH_GROUP = ON_GPUS | {JobState.WRITING}

TRANSITIONS: Mapping[Enum, frozenset[Enum]] = {
    SupervisorState.SERVING: frozenset({SupervisorState.DRAINING}),
    SupervisorState.DRAINING: frozenset({SupervisorState.TERMINATING, SupervisorState.STOPPED}),
    SupervisorState.TERMINATING: frozenset({SupervisorState.STOPPED}),
    SupervisorState.STOPPED: frozenset(),
    GpuGroupState.DOWN: frozenset({GpuGroupState.STARTING}),
    GpuGroupState.STARTING: frozenset({GpuGroupState.READY, GpuGroupState.BACKING_OFF}),
    GpuGroupState.READY: frozenset({GpuGroupState.DOWN}),
    GpuGroupState.BACKING_OFF: frozenset({GpuGroupState.STARTING}),
    JobState.FETCHING: frozenset({JobState.WAITING, JobState.FINALIZING}),
    JobState.WAITING: frozenset({JobState.RUNNING, JobState.FINALIZING}),
    JobState.RUNNING: frozenset({JobState.DECODING, JobState.WRITING, JobState.FINALIZING}),
    JobState.DECODING: frozenset({JobState.RUNNING, JobState.WRITING, JobState.FINALIZING}),
    JobState.WRITING: frozenset({JobState.FINALIZING}),
    JobState.FINALIZING: frozenset({JobState.DONE}),
    JobState.DONE: frozenset(),
    WorldJobState.WAITING: frozenset({WorldJobState.RUNNING}),
    WorldJobState.RUNNING: frozenset(
        {WorldJobState.WAITING, WorldJobState.RESIZING, WorldJobState.DECODING, WorldJobState.RELEASED}
    ),
    WorldJobState.RESIZING: frozenset(
        {WorldJobState.WAITING, WorldJobState.DECODING, WorldJobState.RELEASED}
    ),
    WorldJobState.DECODING: frozenset({WorldJobState.WAITING, WorldJobState.RELEASED}),
    WorldJobState.RELEASED: frozenset(),
}

State = TypeVar("State", bound=Enum)


class IllegalTransition(Exception):
    """A state does not follow the present one."""


def change(current: State, following: State) -> State:
    """Return `following` if it may follow `current`. Raises IllegalTransition."""
    if following not in TRANSITIONS[current]:
        raise IllegalTransition(f"{current} is never followed by {following}")
    return following
