"""Do what rank 0 does for a job beside the model: write the video, report progress, save checkpoints.

`worker.rank.run_job` calls a `Leader` after each event. Whatever is slow runs in a `BackgroundWriter`, in
order, so that the GPUs continue meanwhile and are released while the video is still being finished.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from safetensors import SafetensorError

from jobs.capability import Capability
from jobs.record import JobError, Progress
from jobs.store.holder import StopReason
from model.pipeline.events import Encoded, Event, Frames, Latents, SegmentDone, Stepped
from model.pipeline.state import State
from worker.digest import sha256_of
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
from worker.rank.background import BackgroundWriter
from worker.rank.consensus import StepOutcome
from worker.rank.engine import InputsRead
from worker.rank.failures import outcome_of
from worker.rank.progress import ProgressMeter, UnitTimes
from worker.rank.video_segments import VideoFormat, VideoSegments
from worker.settings import VideoSettings
from worker.telemetry import Interval

logger = logging.getLogger(__name__)


class Leader:
    """Handle the events of one job on rank 0.

    Args:
        run: the job.
        send: sends a message to the supervisor.
        get_stop_request: returns why the supervisor wants the job to stop, None while it does not.
        unit_times: measured times of earlier jobs, to which this job adds its own.
        capability: what the group can make; names the weights in checkpoints and in the result.
    """

    def __init__(
        self,
        run: RunJob,
        send: Callable[[Message], None],
        get_stop_request: Callable[[], StopReason | None],
        settings: VideoSettings,
        unit_times: UnitTimes,
        capability: Capability | None = None,
    ) -> None:
        plan, resume = run.order.plan, run.resume
        self._job_id = run.job_id
        self._folder = run.folder
        self._width = run.width
        self._send = send
        self._get_stop_request = get_stop_request
        self._capability = capability
        self._weights = capability.weights_for(plan) if capability else {}
        self._last_segment = plan.num_segments - 1
        self._last_stage = "refine" if plan.refinement else "denoise"
        self._meter = ProgressMeter(plan, run.timings_s, unit_times)
        self._resumed_at = (resume.segment, resume.stage, resume.step) if resume else None
        if resume:
            self._meter.resume(resume.segment, resume.stage, resume.step, resume.fraction)
        video_format = VideoFormat(plan.output_size, plan.output_fps, settings.crf, settings.preset)
        self._segments = VideoSegments(run.folder, video_format, resume.segment_files if resume else ())
        self._background = BackgroundWriter(settings.buffer_bytes)
        self._checkpoint_s = settings.checkpoint_s
        self._checkpointed_at = time.monotonic()
        self._state: State | None = None
        self._saved_state: State | None = None
        self._video: VideoFile | None = None

    def stop_request_at(self, event: InputsRead | Event) -> StopReason | None:
        """Return why the job is to stop after this event, None if it is not."""
        reason = self._get_stop_request()
        return None if reason == "resize" and not self._may_resize_after(event) else reason

    def _may_resize_after(self, event: InputsRead | Event) -> bool:
        """Check that a job which is resized after this event repeats one step at most, and gets on.

        With the step cache, not every step can be saved. The saved one must not be the one at which this
        attempt began: the job would repeat its steps for ever.
        """
        match event:
            case Stepped(step=step, state=state):
                position = (state.segment, state.stage, state.step)
                return state.step >= max(1, step - 1) and position != self._resumed_at
            case SegmentDone(segment):
                return segment != self._last_segment
            case _:
                return False

    def raise_if_failed(self) -> None:
        """Raise the exception of background work that failed."""
        self._background.raise_if_failed()

    def handle(self, event: InputsRead | Event) -> None:
        """Handle an event that all ranks have reached. Block while too many frames wait for the encoder."""
        match event:
            case InputsRead():
                self._send(JobStarted(job_id=self._job_id, width=self._width))
                self._report(self._meter.enter("encode", self._meter.progress.segment))
            case Encoded(stage, segment):
                self._report(self._meter.enter(stage, segment))
            case Stepped(stage, segment, step, num_steps, state):
                self._state = state
                self._report(self._meter.step(stage, segment, step, num_steps))
                if time.monotonic() - self._checkpointed_at >= self._checkpoint_s:
                    self._save_later(state)
            case Latents(stage, segment):
                if (stage, segment) == (self._last_stage, self._last_segment):
                    self._send(LastDecode(job_id=self._job_id))
                self._report(self._meter.enter("decode", segment))
            case Frames(segment, frames):
                assert frames is not None  # they are, on the leader
                self._submit("x264", partial(self._segments.write, frames), frames.nbytes, detail=True)
                self._report(self._meter.add_frames(segment, len(frames)))
            case SegmentDone(segment, state):
                self._state = state
                self._submit("x264, the rest", self._segments.finish)
                if segment == self._last_segment:
                    self._report(self._meter.enter("decode", segment))
                else:
                    self._report(self._meter.enter("encode", segment + 1))
                    self._save_later(state)

    def end(self, outcome: StepOutcome) -> None:
        """End the job as all ranks have decided. Return at once: the last message comes from the thread."""
        if outcome.error:
            self._abort(self._failed(outcome.error))
        elif outcome.stop_request in SAVE_BEFORE_STOP:
            self._background.finish(partial(self._save_and_stop, outcome.stop_request))
        elif outcome.stop_request:
            self._abort(JobStopped(job_id=self._job_id, reason=outcome.stop_request))
        else:
            self._send(GpusReleased(job_id=self._job_id))
            self._submit("join", self._concat)
            self._background.finish(self._send_result)

    def _report(self, progress: Progress) -> None:
        timings_s = dict(self._meter.timings_s)
        self._send(ProgressReport(job_id=self._job_id, progress=progress, timings_s=timings_s))

    def _failed(self, error: JobError) -> JobFailed:
        return JobFailed(job_id=self._job_id, error=error, timings_s=dict(self._meter.timings_s))

    # In the background thread

    def _submit(
        self, name: str, task: Callable[[], None], size_bytes: int = 0, *, detail: bool = False
    ) -> None:
        """Run a task in the background, and send the supervisor its time."""

        def run() -> None:
            began_s = time.time()
            task()
            interval = Interval(name=name, lane="video", began_s=began_s, ended_s=time.time(), detail=detail)
            self._send(StageDone(job_id=self._job_id, stage=interval))

        self._background.submit(run, size_bytes)

    def _save_later(self, state: State) -> None:
        """Save a checkpoint once the segments before it are complete. The next step runs meanwhile."""
        self._checkpointed_at = time.monotonic()
        self._submit("save", self._saving(state))

    def _saving(self, state: State) -> Callable[[], None]:
        """Return the task that saves a state with the share of the work and the times until now."""
        fraction = self._meter.fraction_at(state.segment, state.stage, state.step)
        return partial(self._save, state, fraction, dict(self._meter.timings_s))

    def _save(self, state: State, fraction: float, timings_s: Timings) -> None:
        name = f"state-{state.segment}-{state.stage}-{state.step}.safetensors"
        try:
            state.save(self._folder / name)
            digests = {name: sha256_of(self._folder / name), **self._segments.digests}
        except (OSError, SafetensorError):
            logger.exception("a checkpoint of job %s cannot be saved; an earlier one remains", self._job_id)
            return
        checkpoint = Checkpoint(
            segment=state.segment,
            stage=state.stage,
            step=state.step,
            fraction=fraction,
            state=name,
            segment_files=self._segments.names,
            timings_s=timings_s,
            weights=self._weights,
            dtype=self._capability and self._capability.dtype,
            digests=digests,
        )
        self._send(CheckpointSaved(job_id=self._job_id, checkpoint=checkpoint))
        self._saved_state = state

    def _concat(self) -> None:
        origin = {}
        if capability := self._capability:
            origin = {"model": capability.model, "weights": self._weights, "dtype": capability.dtype}
        self._video = self._segments.concat().model_copy(update=origin)

    def _send_result(self, error: Exception | None) -> None:
        if error:
            failure = outcome_of(error).error
            assert failure is not None
            self._send(self._failed(failure))
        else:
            assert self._video is not None
            timings_s = dict(self._meter.timings_s)
            self._send(VideoDone(job_id=self._job_id, video=self._video, timings_s=timings_s))

    def _save_and_stop(self, reason: StopReason, error: Exception | None) -> None:
        self._segments.abort()
        if self._state and self._state is not self._saved_state and not error:
            self._saving(self._state)()
        self._send(JobStopped(job_id=self._job_id, reason=reason))

    def _abort(self, last_message: JobFailed | JobStopped) -> None:
        """Drop what is not written yet. No file of the job changes after its last message."""

        def abort(_: Exception | None) -> None:
            self._segments.abort()
            self._send(last_message)

        self._background.abort(abort)
