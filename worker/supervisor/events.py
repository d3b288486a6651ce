"""What can happen to a supervisor: its threads put it into one inbox, and `serve` there deals with it."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from worker.messages import Message, RunJob
from worker.supervisor.group_process import GroupProcess
from worker.supervisor.job import ClaimedJob, Ending


@dataclass(frozen=True)
class GroupMessage:
    """A group said something; None: its rank 0 is gone."""

    group: GroupProcess
    message: Message | None


@dataclass(frozen=True)
class JobFetched:
    """A job was claimed and can be handed over; or its ending, if it cannot."""

    held: ClaimedJob
    work: RunJob | Ending


@dataclass(frozen=True)
class StopRequested:
    """The job_store's verdict on a job changed."""

    held: ClaimedJob


@dataclass(frozen=True)
class JobClosed:
    """Nothing of a job remains to be done."""

    held: ClaimedJob


@dataclass(frozen=True)
class DrainRequested:
    """Let go of everything and end."""


Event = GroupMessage | JobFetched | StopRequested | JobClosed | DrainRequested
Inbox = queue.SimpleQueue[Event]
