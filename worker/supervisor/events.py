"""Define the events that the supervisor handles.

Threads put them into its inbox, and `worker.supervisor.supervisor` handles one after the other.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass

from worker.messages import Message, RunJob
from worker.supervisor.group_process import GroupProcess
from worker.supervisor.job import ClaimedJob, Outcome


@dataclass(frozen=True)
class GroupMessage:
    """Rank 0 of a group sent a message, or closed the connection: then the message is None."""

    process: GroupProcess
    message: Message | None


@dataclass(frozen=True)
class JobClaimed:
    """A job was claimed; its files are being fetched."""

    job: ClaimedJob


@dataclass(frozen=True)
class JobFetched:
    """A claimed job can run, or its outcome is known without that."""

    job: ClaimedJob
    result: RunJob | Outcome


@dataclass(frozen=True)
class StopRequested:
    """The `stop_request` of a job changed."""

    job: ClaimedJob


@dataclass(frozen=True)
class JobFinalized:
    """The outcome of a job is recorded. Nothing remains to be done for it."""

    job: ClaimedJob


@dataclass(frozen=True)
class DrainRequested:
    """The supervisor is to requeue its jobs and stop."""


@dataclass(frozen=True)
class Tick:
    """Nothing happened for a while; time went by."""


Event = GroupMessage | JobClaimed | JobFetched | StopRequested | JobFinalized | DrainRequested | Tick
Inbox = queue.SimpleQueue[Event]
