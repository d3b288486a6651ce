"""The line on which a person sees how far a job is; for `service.cli`.

On a terminal it is one line that changes; into a file goes a line for each phase.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self, TextIO

_WIDTH = 30
_CLEAR = "\r\x1b[K"


@dataclass
class Bar:
    """As a context, it leaves its last state on a line of its own."""

    stream: TextIO
    live: bool
    _shown: str = field(default="", init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live and self._shown:
            print(file=self.stream, flush=True)

    def show(self, job: dict[str, Any]) -> None:
        """Show the job as it stands, if that is new."""
        text = line(job) if self.live else stage(job)
        if text == self._shown:
            return
        self._shown = text
        print(*([_CLEAR, text] if self.live else [text, "\n"]), sep="", end="", file=self.stream, flush=True)


def stage(job: dict[str, Any]) -> str:
    """What is being done, in words: its phase, or its status and place."""
    progress = job["progress"]
    if job["status"] == "running" and progress:
        segments = progress["num_segments"]
        part = f" {progress['segment'] + 1}/{segments}" if segments > 1 else ""
        return f"{progress['phase']}{part}"
    place = job["queue_position"]
    return f"{job['status']}, number {place}" if place else f"{job['status']}"


def line(job: dict[str, Any]) -> str:
    """Stage, bar, percent, and what is left."""
    progress = job["progress"]
    if job["status"] == "queued" or progress is None:
        return stage(job)
    filled = round(_WIDTH * progress["fraction"])
    left = "" if not progress["eta_s"] else f"  {duration(progress['eta_s'])} left"
    return f"{stage(job):<12} {'━' * filled}{'┄' * (_WIDTH - filled)} {progress['fraction']:4.0%}{left}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
