"""One order, on every rank in step: the loop that joins the model to the group's agreement.

`worker.rank.main` calls `run_order` on every rank with the same order. After each event of the model all
ranks agree whether to go on, so a job is left by all of them at the same place, and the group stays warm.
What the leader does beside the model (film, progress, saves) is its `Part`; the others have none to speak of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Protocol

from jobs.store.holder import StopReason
from model.pipeline.events import Event
from worker.messages import RunJob
from worker.rank.consensus import Consensus, StepOutcome
from worker.rank.engine import Begun, Engine
from worker.rank.failures import vote_of


class Part(Protocol):
    """What a rank does in one job beside the model."""

    def wish(self) -> StopReason | None:
        """Why the job is to be left, if it is."""

    def take(self, event: Begun | Event) -> None:
        """Use what the model made. What it raises ends the job."""

    def report(self, event: Begun | Event) -> None:
        """All ranks have come this far and go on."""

    def end(self, outcome: StepOutcome) -> None:
        """The job is over for the GPUs: done, or left for a wish, or failed."""


class Follower:
    """The part of a rank that does not lead."""

    def wish(self) -> StopReason | None:
        """See `Part`."""
        return None

    def take(self, event: Begun | Event) -> None:
        """See `Part`."""

    def report(self, event: Begun | Event) -> None:
        """See `Part`."""

    def end(self, outcome: StepOutcome) -> None:
        """See `Part`."""


def run_order(run: RunJob, engine: Engine, ranks: Consensus, part: Part) -> None:
    """Run one order to its end, whichever that is. Raises GroupBroken, and what a dead rank causes."""
    with closing(engine.generate(run)) as events:  # type: ignore[type-var]
        event, outcome = _boundary(events, ranks, part)
        while event is not None:
            part.report(event)
            event, outcome = _boundary(events, ranks, part)
    if outcome.stop or outcome.error:
        engine.tidy()
    part.end(outcome)


def _boundary(
    events: Iterator[Begun | Event], ranks: Consensus, part: Part
) -> tuple[Begun | Event | None, StepOutcome]:
    """Run to the next boundary and agree there; no event where the job ends, in one way or another."""
    event, vote = _advance(events, part)
    outcome = ranks.agree(vote)
    return (None if outcome.stop or outcome.error else event), outcome


def _advance(events: Iterator[Begun | Event], part: Part) -> tuple[Begun | Event | None, StepOutcome]:
    try:
        event = next(events, None)
        if event is None:
            return None, StepOutcome()
        part.take(event)
        return event, StepOutcome(stop=part.wish())
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks have to hear of it
        return None, vote_of(error)
