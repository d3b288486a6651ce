"""Define what a job's timeline consists of.

Rank 0 measures some intervals and sends them to the supervisor (`worker.messages.StageDone`). The supervisor
collects all of them in `worker.supervisor.timeline`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Lane = Literal["job", "ranks", "video", "storage"]
"""Where work is done: the supervisor before the job runs, the ranks in step, rank 0's background writer, and
the supervisor's uploads."""


class Interval(BaseModel):
    """A piece of work for a job and when it was done.

    Attributes:
        began_s: seconds since 1970, by the clock of this machine; `ended_s` likewise.
        segment: the segment of the video that it belongs to.
        detail: a part of another interval, too small for a trace span, such as one denoising step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    lane: Lane
    began_s: float
    ended_s: float
    segment: int = 0
    detail: bool = False
