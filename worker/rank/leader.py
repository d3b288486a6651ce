"""What the leader does in one job beside the model: it writes the film, measures progress and saves states.

`worker.rank.run_job` calls it at each boundary. All that is slow happens in a backroom thread, in order, so
that the GPUs go on meanwhile and are released while the film is still being finished.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from safetensors import SafetensorError

from jobs.record import JobError, Progress
from jobs.store.holder import StopReason
from model.pipeline.events import Encoded, Event, Frames, Latents, SegmentDone, Stepped
from model.pipeline.state import State
from worker.messages import (
    SAVE_BEFORE_STOP,
    Checkpoint,
    CheckpointSaved,
    GpusReleased,
    JobFailed,
    JobStarted,
    JobStopped,
    LastDecode,
    Message,
    ProgressReport,
    RunJob,
    StageDone,
    Timings,
    VideoDone,
    VideoFile,
)
from worker.rank.background import BackgroundWriter, Task
from worker.rank.consensus import StepOutcome
from worker.rank.engine import Begun
from worker.rank.failures import vote_of
from worker.rank.progress import Experience, Meter
from worker.rank.video_segments import VideoFormat, VideoSegments
from worker.settings import VideoSettings
from worker.telemetry import Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contact:
    """How the leader speaks with the supervisor: `say` something, ask for its `wish` to stop a job."""

    say: Callable[[Message], None]
    wish: Callable[[str], StopReason | None]


class Leader:
    """Do the leader's part in one job; see `worker.rank.run_job.Part`. `dtype` is noted in the result."""

    def __init__(
        self,
        run: RunJob,
        contact: Contact,
        settings: VideoSettings,
        experience: Experience,
        dtype: str | None = None,
    ) -> None:
        plan = run.order.plan
        resume = run.resume
        self._run = run
        self._contact = contact
        self._dtype = dtype
        self._checkpoint_s = settings.checkpoint_s
        self._meter = Meter(plan, run.timings_s, experience)
        form = VideoFormat(plan.output_size, plan.output_fps, settings.crf, settings.preset)
        self._pieces = VideoSegments(run.folder, form, resume.segment_files if resume else ())
        self._backroom = BackgroundWriter(settings.buffer_bytes)
        self._last_segment = plan.num_segments - 1
        self._state: State | None = None
        self._film: VideoFile | None = None
        self._saved_at = time.monotonic()
        if resume:
            self._meter.resume(resume.segment, resume.stage, resume.step)

    def wish(self) -> StopReason | None:
        """See `Part`."""
        return self._contact.wish(self._run.job_id)

    def take(self, event: Begun | Event) -> None:
        """Hand frames on to the film. Raises what writing earlier ones raised."""
        self._backroom.check()
        if isinstance(event, Frames):
            assert event.frames is not None
            writing = partial(self._pieces.write, event.frames)
            self._backroom.submit(partial(self._do, "x264", writing, detail=True), event.frames.nbytes)
        elif isinstance(event, SegmentDone):
            self._backroom.submit(partial(self._do, "x264, the rest", self._pieces.cut))
        if isinstance(event, Stepped | SegmentDone):
            self._state = event.state

    def report(self, event: Begun | Event) -> None:
        """Tell the supervisor how far the job is, and save it where that is due."""
        if isinstance(event, Begun):
            self._contact.say(JobStarted(job_id=self._run.job_id))
        elif isinstance(event, Latents) and self._is_last(event):
            self._contact.say(LastDecode(job_id=self._run.job_id))
        progress = self._measure(event)
        self._contact.say(
            ProgressReport(job_id=self._run.job_id, progress=progress, timings_s=dict(self._meter.timings_s))
        )
        if isinstance(event, Stepped | SegmentDone) and self._due(event):
            self._save_soon(event.state)

    def end(self, outcome: StepOutcome) -> None:
        """See `Part`; what remains to be done is done in the backroom."""
        if outcome.error:
            self._leave(self._failed(outcome.error))
        elif outcome.stop in SAVE_BEFORE_STOP:
            self._backroom.close(partial(self._save_and_stop, outcome.stop))
        elif outcome.stop:
            self._leave(JobStopped(job_id=self._run.job_id, reason=outcome.stop))
        else:
            self._contact.say(GpusReleased(job_id=self._run.job_id))
            self._backroom.submit(partial(self._do, "join", self._join))
            self._backroom.close(self._finished)

    def _measure(self, event: Begun | Event) -> Progress:
        match event:
            case Begun():
                return self._meter.enter("encode", self._meter.progress.segment)
            case Encoded(stage, segment):
                return self._meter.enter(stage, segment)
            case Stepped(stage, segment, step, num_steps):
                return self._meter.step(stage, segment, step, num_steps)
            case Latents(_, segment):
                return self._meter.enter("decode", segment)
            case Frames(segment, frames):
                return self._meter.frames(segment, 0 if frames is None else len(frames))
            case SegmentDone(segment):
                is_last = segment == self._last_segment
                return self._meter.enter(
                    "decode" if is_last else "encode", segment if is_last else segment + 1
                )

    def _is_last(self, made: Latents) -> bool:
        stage = "refine" if self._run.order.plan.refinement else "denoise"
        return (made.stage, made.segment) == (stage, self._last_segment)

    def _due(self, event: Stepped | SegmentDone) -> bool:
        if isinstance(event, SegmentDone):
            return event.segment < self._last_segment
        return time.monotonic() - self._saved_at >= self._checkpoint_s

    def _save_soon(self, state: State) -> None:
        """Save when all pieces before this state are whole; the next step runs meanwhile."""
        self._saved_at = time.monotonic()
        save = partial(self._save, state, dict(self._meter.timings_s))
        self._backroom.submit(partial(self._do, "save", save))

    def _save(self, state: State, timings_s: Timings) -> None:
        name = f"state-{state.segment}-{state.stage}-{state.step}.safetensors"
        try:
            state.save(self._run.folder / name)
        except (OSError, SafetensorError):
            logger.exception("the job would go on from an earlier state")
            return
        save = Checkpoint(
            segment=state.segment,
            stage=state.stage,
            step=state.step,
            state=name,
            segment_files=self._pieces.names,
            timings_s=timings_s,
        )
        self._contact.say(CheckpointSaved(job_id=self._run.job_id, save=save))

    def _do(self, name: str, task: Task, *, detail: bool = False) -> None:
        """Do this in the backroom, and say how long it took."""
        began_s = time.time()
        task()
        stage = Stage(name=name, lane="video", began_s=began_s, ended_s=time.time(), detail=detail)
        self._contact.say(StageDone(job_id=self._run.job_id, stage=stage))

    def _leave(self, last_word: JobFailed | JobStopped) -> None:
        """Drop what is not done yet; then no file of the job is touched any more."""

        def left(_: Exception | None) -> None:
            self._pieces.drop()
            self._contact.say(last_word)

        self._backroom.close(left, at_once=True)

    def _save_and_stop(self, reason: StopReason, error: Exception | None) -> None:
        self._pieces.drop()
        if self._state and not error:
            self._save(self._state, dict(self._meter.timings_s))
        self._contact.say(JobStopped(job_id=self._run.job_id, reason=reason))

    def _join(self) -> None:
        self._film = self._pieces.join().model_copy(update={"dtype": self._dtype})

    def _finished(self, error: Exception | None) -> None:
        timings_s = dict(self._meter.timings_s)
        if error:
            self._contact.say(self._failed(vote_of(error).error))
        else:
            assert self._film is not None
            self._contact.say(VideoDone(job_id=self._run.job_id, video=self._film, timings_s=timings_s))

    def _failed(self, error: JobError | None) -> JobFailed:
        assert error is not None
        return JobFailed(job_id=self._run.job_id, error=error, timings_s=dict(self._meter.timings_s))
