"""What can happen to a supervisor: its threads put it into one inbox, and `serve` there deals with it."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from worker.messages import Message, Run
from worker.supervisor.group_process import Group
from worker.supervisor.job import Ending, Held


@dataclass(frozen=True)
class Heard:
    """A group said something; None: its rank 0 is gone."""

    group: Group
    message: Message | None


@dataclass(frozen=True)
class Prepared:
    """A job was claimed and can be handed over; or its ending, if it cannot."""

    held: Held
    work: Run | Ending


@dataclass(frozen=True)
class Told:
    """The job_store's verdict on a job changed."""

    held: Held


@dataclass(frozen=True)
class Over:
    """Nothing of a job remains to be done."""

    held: Held


@dataclass(frozen=True)
class Drain:
    """Let go of everything and end."""


Event = Heard | Prepared | Told | Over | Drain
Inbox = queue.SimpleQueue[Event]
