"""Let all ranks of a group decide together whether to continue a job.

After each event of the pipeline every rank contributes a `StepOutcome`, and all derive the same decision from
all of them. So all ranks leave a job at the same place, and the group can run the next one.

The ranks communicate through a gloo group of their own, in which they also wait for jobs. Waiting there costs
no GPU time and may last for days, and a rank that died is noticed at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch.distributed as dist

from jobs.record import JobError
from jobs.store.holder import StopReason

Value = TypeVar("Value")

Aftermath = Literal["sound", "unknown", "broken"]
"""What is known of a rank after an error: it can run the next job, nothing, or it cannot."""

IDLE_TIMEOUT = timedelta(days=365)
EXIT_FAILED_ALONE = 70  # exit status of a rank whose error the other ranks do not share


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of one event, on one rank or on all. Without stop request and error the job continues.

    Attributes:
        stop_request: why the job is to stop. Only the leader knows.
        error: the error that ended the job on this rank.
        aftermath: what the error made of this rank. The other ranks can follow a sound one out of the job.
    """

    stop_request: StopReason | None = None
    error: JobError | None = None
    aftermath: Aftermath = "sound"

    @property
    def ends_job(self) -> bool:
        """Return whether the job does not continue."""
        return self.stop_request is not None or self.error is not None

    @property
    def cause(self) -> JobError | None:
        """Return the error if the job is to end with it. An unknown one may have been the machine's."""
        return None if self.aftermath == "unknown" else self.error


class GroupBroken(Exception):
    """The ranks are at different places of a job, or one of them is not sound: all processes must end.

    `cause` is the error with which the job ends, None if it is to be tried again.
    """

    def __init__(self, message: str, cause: JobError | None) -> None:
        super().__init__(message)
        self.cause = cause


def combine(outcomes: Sequence[StepOutcome]) -> StepOutcome:
    """Return what all ranks do, given the outcome of each: the leader's stop request, or an error.

    Errors whose aftermath is known come first: they may have caused the others.

    Raises GroupBroken if a rank is broken, or if only some ranks failed and nothing is known of one of them.
    """
    errors = [outcome for outcome in outcomes if outcome.error]
    if not errors:
        return outcomes[0]
    first = next((outcome for outcome in errors if outcome.cause), errors[0])
    after = {outcome.aftermath for outcome in errors}
    if "broken" in after or ("unknown" in after and len(errors) < len(outcomes)):
        ranks = [rank for rank, outcome in enumerate(outcomes) if outcome.error]
        raise GroupBroken(f"ranks {ranks} failed: {first.error}", first.cause)
    return first


def _exit_failed_alone(on_failed_alone: Callable[[], None]) -> None:
    with suppress(OSError):  # the supervisor is gone, too
        on_failed_alone()
    os._exit(EXIT_FAILED_ALONE)


class Consensus:
    """Communicate with the ranks that run jobs together: the `size` consecutive ones around this rank.

    All ranks of the world create theirs together. `grace_s` is how long a rank that failed waits for the
    others to fail or to finish their event. Without `size`, all ranks run jobs together.
    """

    def __init__(self, grace_s: float, size: int | None = None) -> None:
        self.size = size or dist.get_world_size()
        self.rank = dist.get_rank() % self.size
        self._grace_s = grace_s
        self._group: dist.ProcessGroup
        self._group, _ = dist.new_subgroups(  # type: ignore[no-untyped-call]
            self.size, backend="gloo", timeout=IDLE_TIMEOUT
        )

    @property
    def is_leader(self) -> bool:
        """Return whether this is the leader, which reports the jobs to the supervisor."""
        return self.rank == 0

    def broadcast(self, value: Value | None) -> Value:
        """Return the leader's value on all ranks. The other ranks wait for it."""
        values: list[Any] = [value]
        dist.broadcast_object_list(values, group_src=0, group=self._group)
        received: Value = values[0]
        return received

    def all_gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, by rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def decide(self, outcome: StepOutcome, on_failed_alone: Callable[[], None] = lambda: None) -> StepOutcome:
        """Wait for the outcomes of all ranks and return the common one. Raises GroupBroken.

        If this rank alone has failed, the others may wait for it in a collective of the model for ever. So
        it calls `on_failed_alone` after `grace_s` and ends its process, which they do notice.
        """
        if outcome.error is None:
            return combine(self.all_gather(outcome))
        # os._exit, since this thread waits in a collective that nothing else can interrupt.
        deadline = threading.Timer(self._grace_s, _exit_failed_alone, [on_failed_alone])
        deadline.daemon = True
        deadline.start()
        try:
            return combine(self.all_gather(outcome))
        finally:
            deadline.cancel()
            deadline.join()
