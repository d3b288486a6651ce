"""What is done for a job, and when: each stage is marked once, here, for whoever wants to know.

A `worker.supervisor.job.ClaimedJob` carries the `Stages` of its job. The supervisor marks the phase in which
the group is and what is done beside that, here or in rank 0's backroom. `worker.supervisor.tracing` makes
spans of it as it comes, `worker.supervisor.timeline` a picture of the whole. Times are seconds since 1970, by
the clock of this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from jobs.record import Phase, Progress, Status

Lane = Literal["job", "ranks", "film", "storage"]

MAX_DETAILS = 10_000  # about 2 MB of a picture; a stage that is no detail is always kept

_LANES: dict[Phase, Lane] = {"load": "job", "upload": "storage"}  # all other phases are the ranks'


class Stage(BaseModel):
    """Something that was done, by whom. A `detail` is too small to be told of alone, as one step is.

    Lanes: `job` waits and fetches, `ranks` compute in step, `film` is rank 0's backroom, `storage` stores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    lane: Lane
    began_s: float
    ended_s: float
    segment: int = 0
    detail: bool = False


class JobSpans(Protocol):
    """Somebody who is told of the stages of one job."""

    def add(self, stage: Stage, *, failed: bool = False) -> None:
        """This is over; `failed` if the job failed in it."""

    def end(self, status: Status | None) -> None:
        """The job is out of hand in this state, None if that is not known. Said once."""


class Untold:
    """Nobody."""

    def add(self, stage: Stage, *, failed: bool = False) -> None:
        """See `JobSpans`."""

    def end(self, status: Status | None) -> None:
        """See `JobSpans`."""


class Stages:
    """The stages of one job in this supervisor's hands, from its claim on. Any thread may add one."""

    def __init__(self, spans: JobSpans = Untold(), clock: Callable[[], float] = time.time) -> None:  # noqa: B008 - has no state
        self._spans = spans
        self._clock = clock
        self._done: list[Stage] = []
        self._phase: Progress | None = Progress(phase="load")
        self._since_s = self._last_s = clock()
        self._is_over = False

    @property
    def so_far(self) -> tuple[Stage, ...]:
        """All stages, the present one as if it ended now."""
        present = (self._present(self._clock()),) if self._phase else ()
        return (*self._done, *present)

    def enter(self, progress: Progress) -> None:
        """The job is there now. What was since the last time is a part of its phase, or all of it."""
        now = self._clock()
        if self._phase and _place(self._phase) == _place(progress):
            self.add(_part(progress, self._last_s, now))
        else:
            self._leave(now)
            self._since_s = now
        self._phase, self._last_s = progress, now

    def leave(self) -> None:
        """The phase is over, and none follows at once."""
        self._leave(self._clock())

    def add(self, stage: Stage, *, failed: bool = False) -> None:
        """Somebody did this."""
        if not stage.detail:
            self._spans.add(stage, failed=failed)
        if not stage.detail or len(self._done) < MAX_DETAILS:
            self._done.append(stage)

    def waited(self) -> None:
        """Since the last stage ended the job waited for the group."""
        began_s = self._done[-1].ended_s if self._done else self._since_s
        self.add(Stage(name="wait", lane="job", began_s=began_s, ended_s=self._clock()))

    @contextmanager
    def doing(self, name: str, lane: Lane) -> Iterator[None]:
        """What is done meanwhile, if it can be done, is a stage."""
        began_s = self._clock()
        yield
        self.add(Stage(name=name, lane=lane, began_s=began_s, ended_s=self._clock()))

    def end(self, status: Status | None) -> None:
        """The job is out of hand in this state, None if that is not known. Only the first time counts."""
        if not self._is_over:
            self._is_over = True
            self._leave(self._clock(), failed=status == "failed")
            self._spans.end(status)

    def _leave(self, now: float, *, failed: bool = False) -> None:
        if self._phase:
            self.add(self._present(now), failed=failed)
            self._phase = None

    def _present(self, now: float) -> Stage:
        assert self._phase
        phase, segment = self._phase.phase, self._phase.segment
        lane = _LANES.get(phase, "ranks")
        return Stage(name=phase, lane=lane, began_s=self._since_s, ended_s=now, segment=segment)


def _place(progress: Progress) -> tuple[Phase, int]:
    return progress.phase, progress.segment


def _part(progress: Progress, began_s: float, ended_s: float) -> Stage:
    """A step, or a chunk of frames."""
    name = f"step {progress.step}" if progress.step else "chunk"
    return Stage(
        name=name, lane="ranks", began_s=began_s, ended_s=ended_s, segment=progress.segment, detail=True
    )
