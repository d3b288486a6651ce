"""What can happen to a supervisor: its threads put it into one inbox, and `serve` there deals with it."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from worker.group import Group
from worker.held import Ending, Held
from worker.protocol import Message, Run


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
    """The ledger's verdict on a job changed."""

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
