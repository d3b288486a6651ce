"""All ranks of a group decide together, at every boundary of a job: go on, leave it, or give it up.

`worker.rank.run_job` votes after each event of the model. The ranks speak over a gloo group of their own, in
which they also wait for work: that costs nothing, may last for days, and a dead rank is noticed at once. The
outcome follows from all votes, so it is the same on every rank.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from jobs.record import JobError
from jobs.store.holder import StopReason

Value = TypeVar("Value")

IDLE_TIMEOUT = timedelta(days=365)
LEFT_ALONE = 70  # exit status of a rank whose error the others do not share


@dataclass(frozen=True)
class StepOutcome:
    """What one rank has to say at a boundary; only the leader knows of a wish to stop.

    An error is `contained` when it left the rank as it was, so that the others may follow it out of the job.
    """

    stop: StopReason | None = None
    error: JobError | None = None
    contained: bool = True


class GroupBroken(Exception):
    """The ranks no longer stand at the same place, or one of them is not sound: all have to go."""


def decide(votes: list[StepOutcome]) -> StepOutcome:
    """What all ranks do now: the leader's wish, or the error of all. Raises GroupBroken."""
    errors = [vote for vote in votes if vote.error]
    if not errors:
        return votes[0]
    if len(errors) < len(votes) and not all(vote.contained for vote in errors):
        ranks = [rank for rank, vote in enumerate(votes) if vote.error]
        raise GroupBroken(f"ranks {ranks} failed alone: {errors[0].error}")
    return errors[0]


class Consensus:
    """The ranks of one group. `grace_s` bounds how far apart they may fail and still agree."""

    def __init__(self, grace_s: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._grace_s = grace_s
        self._group = dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT)

    @property
    def is_leader(self) -> bool:
        """Whether this rank speaks with the supervisor."""
        return self.rank == 0

    def share(self, value: Value | None) -> Value:
        """The leader's value, on all ranks; the others wait for it."""
        envelope: list[Any] = [value]
        dist.broadcast_object_list(envelope, src=0, group=self._group)
        shared: Value = envelope[0]
        return shared

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, on all ranks."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def agree(self, vote: StepOutcome) -> StepOutcome:
        """Wait for the votes of all and decide. Raises GroupBroken.

        A rank with an error may be the only one with it: the others then wait for it in the model, for
        ever. So it waits for them only so long, and then ends its process, which they do notice.
        """
        if vote.error is None:
            return decide(self.gather(vote))
        alone = threading.Timer(self._grace_s, os._exit, [LEFT_ALONE])
        alone.daemon = True
        alone.start()
        try:
            return decide(self.gather(vote))
        finally:
            alone.cancel()
