"""Provide a supervisor whose components record their calls. Its logic and its GPU group are real.

No thread runs. A test passes events to `Supervisor.handle` and advances the clock. Each fake is a subclass of
the real component, so that mypy checks its methods.
"""

from __future__ import annotations

import queue
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from jobs.capability import Capability
from jobs.record import Job
from jobs.store.holder import Lease
from tests.worker.examples import ORDER
from worker.messages import Checkpoint, Message, Ready, RunJob, StopJob, VideoFile
from worker.supervisor.checkpoints import CheckpointUploader
from worker.supervisor.consumer import Consumer
from worker.supervisor.disk_space import DiskSpace
from worker.supervisor.events import GroupMessage, Inbox, JobClaimed, JobFetched, JobFinalized, Tick
from worker.supervisor.fetch import InputFetcher
from worker.supervisor.finalize import Finalizer
from worker.supervisor.gpu_group import GpuGroup, GroupLimits
from worker.supervisor.group_process import GroupProcess
from worker.supervisor.heartbeat import Heartbeat, PublishedStatus
from worker.supervisor.job import ClaimedJob, Outcome
from worker.supervisor.lease_renewer import LeaseRenewer
from worker.supervisor.states import JobState
from worker.supervisor.supervisor import Components, Supervisor, SupervisorLimits
from worker.supervisor.threads import StoppableThread

CAPABILITY = Capability(model="m", tasks=("text_to_video",), limits={}, device="cpu", dtype="float32")
READY = Ready(capability=CAPABILITY, pids=(1, 2))
VIDEO = VideoFile(
    video="v.mp4", thumbnail="t.jpg", width=96, height=64, num_frames=9, fps=15, size_bytes=1, sha256="5"
)
CHECKPOINT = Checkpoint(segment=0, stage="denoise", step=2, state="state.safetensors")


class FakeProcess(GroupProcess):
    """A group without processes, which records the messages to it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.lives = True
        self.is_killed = False
        self.failure: str | None = None

    @property
    def first_failure(self) -> str | None:
        return self.failure

    @property
    def is_alive(self) -> bool:
        return self.lives and not self.is_killed

    def set_ranks(self, pids: tuple[int, ...]) -> None:
        """Do nothing: there are no ranks."""

    def send(self, message: Message, rank: int = 0) -> None:
        assert not self.is_killed
        self.sent.append(message)

    def kill(self) -> None:
        self.is_killed = True


class IdleThread(StoppableThread):
    """A thread that does nothing until it is stopped."""

    def __init__(self) -> None:
        StoppableThread.__init__(self, "fake")

    def run(self) -> None:
        self.stopping.wait()

    def stop(self) -> None:
        self.stopping.set()


class FakeConsumer(IdleThread, Consumer):
    def __init__(self) -> None:
        super().__init__()
        self.is_requested = False
        self.has_ended = False

    def run(self) -> None:
        super().run()
        self.has_ended = True

    def request_claim(self) -> None:
        assert not self.stopping.is_set(), "a claim is requested after the drain began"
        self.is_requested = True

    def withdraw_request(self) -> None:
        self.is_requested = False

    def is_alive(self) -> bool:
        return not self.has_ended


class FakeFetcher(InputFetcher):
    def __init__(self) -> None:
        self.is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True


class FakeLeaseRenewer(IdleThread, LeaseRenewer):
    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[ClaimedJob] = []

    def add(self, job: ClaimedJob) -> None:
        self.jobs.append(job)

    def remove(self, job: ClaimedJob) -> None:
        self.jobs.remove(job)


class FakeFinalizer(Finalizer):
    def __init__(self) -> None:
        self.outcomes: list[tuple[ClaimedJob, Outcome]] = []
        self.interrupted = self.is_stopped = False
        self.has_ended = True
        self.joined_for_s: float | None = None

    def start(self, job: ClaimedJob, outcome: Outcome) -> None:
        self.outcomes.append((job, outcome))

    def interrupt_uploads(self) -> None:
        self.interrupted = True

    def stop(self) -> None:
        self.is_stopped = True

    def join(self, timeout_s: float) -> bool:
        self.joined_for_s = timeout_s
        return self.has_ended


class FakeCheckpointUploader(IdleThread, CheckpointUploader):
    def __init__(self) -> None:
        super().__init__()
        self.submitted: list[tuple[ClaimedJob, Checkpoint]] = []

    def submit(self, job: ClaimedJob, checkpoint: Checkpoint) -> None:
        self.submitted.append((job, checkpoint))


class FakeHeartbeat(IdleThread, Heartbeat):
    def __init__(self) -> None:
        super().__init__()
        self.status = PublishedStatus()
        self.starts_s: list[float] = []

    def update(self, status: PublishedStatus) -> None:
        self.status = status

    def count_start(self, duration_s: float) -> None:
        self.starts_s.append(duration_s)


class FakeSupervisor:
    """A supervisor with fake components, and methods that cause the events of the real ones."""

    def __init__(
        self,
        max_claimed_jobs: int = 2,
        drain_s: float = 30.0,
        requeue_s: float = 5.0,
        maintenance: tuple[StoppableThread, ...] = (),
    ) -> None:
        self.now = 0.0
        self.processes: list[FakeProcess] = []
        self.inbox: Inbox = queue.SimpleQueue()
        self.consumer, self.fetcher, self.lease_renewer = FakeConsumer(), FakeFetcher(), FakeLeaseRenewer()
        self.finalizer, self.checkpoints = FakeFinalizer(), FakeCheckpointUploader()
        self.heartbeat, self.disk_space = FakeHeartbeat(), DiskSpace([], 0)
        limits = GroupLimits(
            start_limit_s=100.0, stall_s=50.0, step_stall_s=50.0, max_failed_starts=2, longest_pause_s=8.0
        )
        self.gpu_group = GpuGroup(self._start_process, limits, lambda: self.now)
        components = Components(
            gpu_group=self.gpu_group,
            consumer=self.consumer,
            fetcher=self.fetcher,
            lease_renewer=self.lease_renewer,
            finalizer=self.finalizer,
            checkpoints=self.checkpoints,
            heartbeat=self.heartbeat,
            disk_space=self.disk_space,
            maintenance=maintenance,
        )
        self.components = components
        self.supervisor = Supervisor(
            components, self.inbox, SupervisorLimits(max_claimed_jobs, drain_s, requeue_s), lambda: self.now
        )
        self._ids = (f"job-{index}" for index in count())

    def _start_process(self) -> FakeProcess:
        self.processes.append(FakeProcess())
        return self.processes[-1]

    @property
    def process(self) -> FakeProcess:
        """Return the processes of the latest start."""
        return self.processes[-1]

    @property
    def sent(self) -> list[Message]:
        """Return the messages to the group since its latest start."""
        return self.process.sent

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.supervisor.handle(Tick())

    def receive(self, message: Message | None) -> None:
        """Handle a message of rank 0, None for a closed connection."""
        self.supervisor.handle(GroupMessage(self.process, message))

    def bring_up(self) -> None:
        """Start the group and have it report that it is ready."""
        self.tick()
        self.receive(READY)

    def new_job(self, job_id: str | None = None, fence: int = 1) -> ClaimedJob:
        """Return a job that the consumer has just claimed."""
        record = Job(
            id=job_id or next(self._ids),
            status="running",
            order=ORDER,
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        job = ClaimedJob(Lease(record, fence, 60.0), Path("/spool") / record.id)
        self.lease_renewer.add(job)
        return job

    def claim(self, job: ClaimedJob | None = None) -> ClaimedJob:
        job = job or self.new_job()
        self.supervisor.handle(JobClaimed(job))
        return job

    def fetch(self, job: ClaimedJob, outcome: Outcome | None = None) -> None:
        """Report that the job is fetched, or its outcome instead."""
        run = RunJob(job_id=job.job_id, order=job.lease.job.order, folder=job.folder)
        self.supervisor.handle(JobFetched(job, outcome or run))

    def run_job(self) -> ClaimedJob:
        """Return a job that runs on the GPUs."""
        job = self.claim()
        self.fetch(job)
        assert job.state is JobState.RUNNING
        return job

    def finish(self, job: ClaimedJob) -> None:
        """Report that the finalizer is done with the job."""
        self.supervisor.handle(JobFinalized(job))

    def outcomes(self, job: ClaimedJob) -> list[Outcome]:
        return [outcome for finalized, outcome in self.finalizer.outcomes if finalized is job]

    def outcome(self, job: ClaimedJob) -> Outcome | None:
        """Return the outcome with which the job was finalized, None if it was not."""
        outcomes = self.outcomes(job)
        assert len(outcomes) <= 1
        return outcomes[0] if outcomes else None

    def runs(self) -> list[str]:
        """Return the ids of the jobs that the group was told to run since its latest start."""
        return [message.job_id for message in self.sent if isinstance(message, RunJob)]

    def sent_to_any_group(self, kind: type[Message]) -> list[Any]:
        """The messages of a kind that were sent to the groups of all starts, in order."""
        return [
            message for process in self.processes for message in process.sent if isinstance(message, kind)
        ]

    def stops(self) -> list[Any]:
        return [message for message in self.sent if isinstance(message, StopJob)]
