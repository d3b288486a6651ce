"""Show the progress of a job: as a bar on a terminal, as a line per stage in a file."""

from __future__ import annotations

from typing import Any, Self, TextIO

from tqdm import tqdm

from longcat_video_client import Job

_BAR = "{desc:<12} {bar:30} {percentage:3.0f}%{postfix}"
_NO_BAR = "{desc}"


class ProgressBar:
    """Shows jobs on `stream` while the context is open. `live` draws a bar that is updated in place."""

    def __init__(self, stream: TextIO, live: bool) -> None:
        self._stream = stream
        self._live = live
        self._bar: tqdm[Any] | None = None
        self._last_stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, job: Job) -> None:
        """Show the current state of the job."""
        if self._live:
            self._draw(job)
        elif (stage := describe_stage(job)) != self._last_stage:
            self._last_stage = stage
            print(stage, file=self._stream, flush=True)

    def _draw(self, job: Job) -> None:
        self._bar = bar = self._bar or tqdm(total=1.0, file=self._stream, bar_format=_NO_BAR)
        progress = job.progress
        if progress and job.status == "queued" and not progress.fraction:  # nothing of it is saved yet
            progress = None
        eta_s = progress.eta_s if progress else None
        bar.bar_format = _BAR if progress else _NO_BAR
        bar.n = progress.fraction if progress else 0.0
        bar.set_description_str(describe_stage(job), refresh=False)
        bar.set_postfix_str(f"{tqdm.format_interval(eta_s)} left" if eta_s else "", refresh=False)
        bar.refresh()


def describe_stage(job: Job) -> str:
    """Return the phase of a running job, or the status of any other with its position in the queue."""
    progress = job.progress
    if job.status == "running" and progress:
        is_long = progress.num_segments > 1
        segment = f" {progress.segment + 1}/{progress.num_segments}" if is_long else ""
        return f"{progress.phase}{segment}"
    return f"{job.status}, number {job.queue_position}" if job.queue_position else job.status
