"""Decide what happens to the jobs of one GPU group, in a process that outlives crashes of the GPUs.

The supervisor is an event loop. Threads put events into its inbox (`worker.supervisor.events`), and
`Supervisor.handle` deals with one after the other: it changes states (`worker.supervisor.states`) and calls
its components, which do the work. It never waits, except for processes that it kills.

Each job goes this way: the consumer claims it and fetches its files, rank 0 runs it, and the finalizer
records its outcome. While the group decodes the last frames of a job, the next one is claimed and fetched,
so that the GPUs wait neither for the queue nor for the storage.

Next on the way of a request: `worker.rank.main`, which receives it on each rank.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from worker.health import ReportedState
from worker.messages import (
    PROTOCOL_VERSION,
    CheckpointSaved,
    GpusReleased,
    GroupFailed,
    JobFailed,
    JobMessage,
    JobPaused,
    JobStarted,
    JobStopped,
    LastDecode,
    Message,
    ProgressReport,
    RankConnected,
    Ready,
    RunJob,
    StageDone,
    StopJob,
    VideoDone,
)
from worker.supervisor.checkpoints import CheckpointUploader
from worker.supervisor.consumer import Consumer
from worker.supervisor.disk_space import DiskSpace
from worker.supervisor.events import (
    DrainRequested,
    Event,
    GroupMessage,
    Inbox,
    JobClaimed,
    JobFetched,
    JobFinalized,
    StopRequested,
    Tick,
)
from worker.supervisor.fetch import InputFetcher
from worker.supervisor.finalize import Finalizer
from worker.supervisor.gpu_group import Group
from worker.supervisor.heartbeat import Heartbeat, PublishedStatus
from worker.supervisor.job import ClaimedJob, Completed, Failed, Outcome, Requeued, Stopped
from worker.supervisor.lease_renewer import LeaseRenewer
from worker.supervisor.states import (
    ON_GPUS,
    WITH_GROUP,
    IllegalTransition,
    JobState,
    SupervisorState,
    change,
)
from worker.supervisor.threads import StoppableThread

logger = logging.getLogger(__name__)

TICK_S = 0.2
JOIN_LIMIT_S = 10.0  # for all threads together; a call to Redis or S3 may block one of them


@dataclass(frozen=True)
class SupervisorLimits:
    """The limits of a supervisor.

    Attributes:
        max_claimed_jobs: jobs that may be running, writing or finalizing at a time.
        drain_s: how long a drain may take before the group is killed.
        requeue_s: how much longer the supervisor then waits for its jobs to be requeued.
    """

    max_claimed_jobs: int
    drain_s: float
    requeue_s: float = 5.0


@dataclass(frozen=True)
class Components:
    """The parts that work for the supervisor.

    Attributes:
        heartbeat: publishes the status, None for a group that is not registered.
        maintenance: threads that the supervisor only starts and stops.
        report_health: is called with the state after each event, so that a probe sees that the loop turns.
    """

    gpu_group: Group
    consumer: Consumer
    fetcher: InputFetcher
    lease_renewer: LeaseRenewer
    finalizer: Finalizer
    checkpoints: CheckpointUploader
    heartbeat: Heartbeat | None
    disk_space: DiskSpace
    maintenance: Sequence[StoppableThread] = ()
    report_health: Callable[[ReportedState], None] = lambda _: None

    @property
    def threads(self) -> list[StoppableThread]:
        """Return all threads."""
        return [
            *(self.lease_renewer, self.checkpoints, self.disk_space, self.consumer),
            *((self.heartbeat,) if self.heartbeat else ()),
            *self.maintenance,
        ]


class Supervisor:
    """Handle one event after the other.

    Attributes:
        state: what the supervisor does as a whole.
        jobs: the claimed jobs that are not done. A job that was requeued may be claimed again before its
            earlier claim is done, so an id may occur twice.
    """

    def __init__(
        self,
        components: Components,
        inbox: Inbox,
        limits: SupervisorLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._components = components
        self._gpu_group = components.gpu_group
        self._consumer = components.consumer
        self._inbox = inbox
        self._limits = limits
        self._clock = clock
        self._claim_is_requested = False
        self._drain_deadline = float("inf")
        self._failure: str | None = None  # of the GPU group, until it is ready again
        self.state = SupervisorState.SERVING
        self.jobs: list[ClaimedJob] = []

    def serve(self) -> None:
        """Work until a drain is over. Then nothing is left: no group, and no thread that can be stopped."""
        for thread in self._components.threads:
            thread.start()
        try:
            while self.state is not SupervisorState.STOPPED:
                self.handle(self._next_event())
        finally:
            self._stop_components()

    def request_drain(self) -> None:
        """Ask the supervisor to requeue its jobs and stop. Any thread or signal handler may call it."""
        self._inbox.put(DrainRequested())

    def handle(self, event: Event) -> None:
        """Handle one event, and do what is due then."""
        match event:
            case GroupMessage(process, message):
                if process is self._gpu_group.process:  # else it was killed meanwhile
                    self._on_group_message(message)
            case JobClaimed(job):
                self.jobs.append(job)
            case JobFetched(job, result):
                self._on_fetched(job, result)
            case StopRequested(job):
                self._on_stop_requested(job)
            case JobFinalized(job):
                job.enter(JobState.DONE)
                self.jobs.remove(job)
                self._components.lease_renewer.remove(job)
            case DrainRequested():
                self._drain()
            case Tick():
                pass
        self._advance()

    def _next_event(self) -> Event:
        try:
            return self._inbox.get(timeout=TICK_S)
        except queue.Empty:
            return Tick()

    def _jobs_in(self, states: Collection[JobState]) -> list[ClaimedJob]:
        return [job for job in self.jobs if job.state in states]

    # Messages of the GPU group

    def _on_group_message(self, message: Message | None) -> None:
        try:
            self._apply(message)
        except IllegalTransition as error:
            self._on_group_failed(f"rank 0 sent a message out of order: {error}")

    def _apply(self, message: Message | None) -> None:
        match message:
            case None:
                self._on_group_failed("rank 0 closed its connection")
            case GroupFailed():
                self._on_group_failed(message.message)
            case Ready() if message.protocol_version != PROTOCOL_VERSION:
                self._on_group_failed(
                    f"rank 0 speaks version {message.protocol_version} of the messages and this supervisor "
                    f"{PROTOCOL_VERSION}: restart the worker"
                )
            case Ready():
                self._gpu_group.on_ready(message)
                self._failure = None
                if self._components.heartbeat:
                    self._components.heartbeat.count_start(self._gpu_group.start_s)
            case RunJob() | StopJob() | RankConnected():
                raise AssertionError(f"no rank sends {message.type} to a supervisor")
            case _:
                for job in self._jobs_in(WITH_GROUP):
                    if job.job_id == message.job_id:
                        self._apply_to_job(job, message)

    def _apply_to_job(self, job: ClaimedJob, message: JobMessage) -> None:
        match message:
            case JobStarted() | JobPaused():
                self._on_width(job, message.width)
            case ProgressReport():
                job.progress, job.timings_s = message.progress, message.timings_s
                job.timeline.enter_phase(message.progress)
                self._gpu_group.on_progress(message.progress)
            case StageDone():
                job.timeline.add(message.stage)
            case CheckpointSaved():
                self._components.checkpoints.submit(job, message.checkpoint)
            case LastDecode():
                job.enter(JobState.DECODING)
            case GpusReleased():
                job.enter(JobState.WRITING)
                job.timeline.end_phase()
            case VideoDone():
                job.timings_s = message.timings_s
                self._finalize(job, Completed(message.video))
            case JobStopped():
                self._finalize(job, Stopped(message.reason))
            case JobFailed():
                job.timings_s = message.timings_s
                self._finalize(job, Failed(message.error))

    def _on_width(self, job: ClaimedJob, width: int | None) -> None:
        """Note how many GPUs run the job. Without any in its last decode, it resumes before that."""
        job.num_gpus = width
        self._gpu_group.on_progress(None)
        if width == 0 and job.state is JobState.DECODING:
            job.enter(JobState.RUNNING)
            self._finalize_waiting(Requeued(crashed=False))

    def _on_group_failed(self, reason: str) -> None:
        process = self._gpu_group.process
        self._failure = (process and process.first_failure) or reason
        logger.error("the GPU group is stopped: %s", self._failure)
        self._stop_group(crashed=True)

    def _stop_group(self, *, crashed: bool) -> None:
        """Kill the group and requeue its jobs. `crashed` counts as an attempt of the jobs that are to blame.

        Jobs of which ranks wrote errors fail, and are to blame alone. In a world there may be several.
        """
        self._gpu_group.stop()
        jobs = self._jobs_in(WITH_GROUP)
        blamed = [job for job in jobs if crashed and self._gpu_group.is_to_blame(job.job_id)]
        errors = {job: error for job in jobs if crashed and (error := job.error_of_rank)}
        for job in jobs:
            is_to_blame = job in (errors or blamed)
            error = errors.get(job)
            reason = self._failure if is_to_blame else None
            self._finalize(job, Failed(error) if error else Requeued(crashed=is_to_blame, reason=reason))
        self._finalize_waiting(Requeued(crashed=False))

    # Jobs

    def _on_fetched(self, job: ClaimedJob, result: RunJob | Outcome) -> None:
        if not isinstance(result, RunJob):
            self._finalize(job, result)
        elif job.stop_request:
            self._finalize(job, Stopped(job.stop_request))
        elif self._can_run_next([other for other in self.jobs if other is not job]) and not self._runs(job):
            job.run = result
            job.enter(JobState.WAITING)
        else:
            self._finalize(job, Requeued(crashed=False))

    def _runs(self, job: ClaimedJob) -> bool:
        """Return whether rank 0 has an earlier claim of this job, whose messages would be mistaken for it."""
        return any(other.job_id == job.job_id for other in self._jobs_in(WITH_GROUP))

    def _can_run_next(self, jobs: Collection[ClaimedJob]) -> bool:
        """Return whether a job can run beside these `jobs`, now or once the GPUs are free."""
        states = [job.state for job in jobs]
        is_claimed_ahead = JobState.FETCHING in states or JobState.WAITING in states
        return (
            self.state is SupervisorState.SERVING
            and self._gpu_group.is_ready
            and self._components.disk_space.is_enough
            and not is_claimed_ahead
            and JobState.RUNNING not in states
            and len(states) < self._limits.max_claimed_jobs
        )

    def _on_stop_requested(self, job: ClaimedJob) -> None:
        """Stop a job where it is. One that only writes or finalizes is not stopped: see the finalizer."""
        if job.stop_request is None:
            return
        if job.state in ON_GPUS:
            logger.info("job %s is told to stop: %s", job.job_id, job.stop_request)
            self._gpu_group.stop_job(job.job_id, job.stop_request)
        elif job.state is JobState.WAITING:
            self._finalize(job, Stopped(job.stop_request))

    def _finalize_waiting(self, outcome: Outcome) -> None:
        for job in self._jobs_in({JobState.WAITING}):
            self._finalize(job, outcome)

    def _finalize(self, job: ClaimedJob, outcome: Outcome) -> None:
        """Hand the job to the finalizer. Without a lease there is nothing to record."""
        job.enter(JobState.FINALIZING)
        if job.stop_request == "lease_lost":
            outcome = Stopped("lease_lost")
        self._components.finalizer.start(job, outcome)

    # What is due after each event

    def _advance(self) -> None:
        is_busy = bool(self._jobs_in(WITH_GROUP))
        may_start = self.state is SupervisorState.SERVING
        if failure := self._gpu_group.check(busy=is_busy, may_start=may_start):
            self._on_group_failed(failure)
        if self.state is SupervisorState.DRAINING and self._clock() > self._drain_deadline:
            self._terminate()
        self._run_waiting_job()
        self._update_claim_request()
        self._publish_status()
        if self._is_drained():
            self.state = change(self.state, SupervisorState.STOPPED)

    def _run_waiting_job(self) -> None:
        if self._jobs_in(ON_GPUS):
            return
        for job in self._jobs_in({JobState.WAITING}):  # one at most
            assert job.run is not None
            job.enter(JobState.RUNNING)
            job.timeline.add_wait()
            self._gpu_group.start_job(job.run)

    def _update_claim_request(self) -> None:
        if not (self._gpu_group.wants_job and self._can_run_next(self.jobs)):
            self._withdraw_claim_request()
        elif not self._claim_is_requested:
            self._claim_is_requested = True
            self._consumer.request_claim()

    def _withdraw_claim_request(self) -> None:
        if self._claim_is_requested:
            self._claim_is_requested = False
            self._consumer.withdraw_request()

    def _publish_status(self) -> None:
        job_id = next((job.job_id for job in self._jobs_in(ON_GPUS)), None)
        state = self._gpu_group.published_state(busy=job_id is not None)
        if state == "ready" and not self._components.disk_space.is_enough:
            state = "full"
        self._components.report_health(state if self.state is SupervisorState.SERVING else "draining")
        if self._components.heartbeat:
            capability = self._gpu_group.capability
            self._components.heartbeat.update(PublishedStatus(state, job_id, capability, self._failure))

    # The end

    def _drain(self) -> None:
        """Claim nothing more, and requeue or finish every job within `drain_s`."""
        if self.state is not SupervisorState.SERVING:
            return
        logger.info("draining")
        self.state = change(self.state, SupervisorState.DRAINING)
        self._drain_deadline = self._clock() + self._limits.drain_s
        self._consumer.stop()
        self._components.fetcher.stop()
        self._components.finalizer.interrupt_uploads()
        self._finalize_waiting(Requeued(crashed=False))
        for job in self._jobs_in(ON_GPUS):
            if job.stop_request is None:
                self._gpu_group.stop_job(job.job_id, "drain")

    def _terminate(self) -> None:
        """Kill a group that did not stop its jobs in time, and wait only until they are requeued."""
        logger.warning("the drain takes too long, so the GPU group is killed")
        self.state = change(self.state, SupervisorState.TERMINATING)
        self._stop_group(crashed=False)

    def _is_drained(self) -> bool:
        match self.state:
            case SupervisorState.SERVING | SupervisorState.STOPPED:
                return False
            case SupervisorState.TERMINATING if self._clock() > self._drain_deadline + self._limits.requeue_s:
                return True
            case _:
                may_claim = self._consumer.is_alive() or not self._inbox.empty()  # asked in this order
                return not may_claim and not self.jobs

    def _stop_components(self) -> None:
        """Kill the group, and stop and join all threads within `JOIN_LIMIT_S`."""
        self._gpu_group.close()
        deadline = time.monotonic() + JOIN_LIMIT_S
        self._components.finalizer.stop()
        for thread in self._components.threads:
            thread.stop()
        for thread in self._components.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("thread %s did not end in time", thread.name)
        if not self._components.finalizer.join(max(0.0, deadline - time.monotonic())):
            logger.warning("some jobs are not finalized; their leases will expire")
