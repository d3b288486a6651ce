"""Provide a world of fake ranks, with real slots. A test plays the ranks and the supervisors."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

from jobs.record import Progress
from tests.orders import make_order
from tests.worker.examples import ORDER
from tests.worker.supervisor.fakes import CAPABILITY, FakeProcess
from worker.messages import (
    Checkpoint,
    CheckpointSaved,
    JobStopped,
    Message,
    ProgressReport,
    Ready,
    RunJob,
    StopJob,
)
from worker.supervisor.events import GroupMessage
from worker.supervisor.gpu_group import GroupLimits
from worker.supervisor.gpu_world import GpuWorld, Slot

LONG = make_order(ORDER, num_inference_steps=50)
LIMITS = GroupLimits(
    start_limit_s=100.0, stall_s=50.0, step_stall_s=50.0, max_failed_starts=2, longest_pause_s=8.0
)


class FakeRanks(FakeProcess):
    """Ranks that record the messages to each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[tuple[int, Message]] = []
        self.dead: list[int] = []

    @property
    def dead_ranks(self) -> list[int]:
        return self.dead

    def send(self, message: Message, rank: int = 0) -> None:
        super().send(message)
        self.received.append((rank, message))


class FakeWorld:
    """A world of fake ranks, the slots of its supervisors, and the messages that these got."""

    def __init__(self, num_ranks: int = 4, num_slots: int = 4) -> None:
        self.now = 0.0
        self.starts: list[FakeRanks] = []
        self.world = GpuWorld(self._start, LIMITS, num_ranks, lambda: self.now)
        self.inboxes: list[queue.SimpleQueue[GroupMessage]] = [queue.SimpleQueue() for _ in range(num_slots)]
        self.slots = [self.world.add_slot(inbox) for inbox in self.inboxes]
        self.num_ranks = num_ranks

    def _start(self, on_message: Any) -> FakeRanks:
        self.on_message = on_message
        self.starts.append(FakeRanks())
        return self.starts[-1]

    @property
    def ranks(self) -> FakeRanks:
        return self.starts[-1]

    def bring_up(self, widths: tuple[int, ...] = (1, 2, 4), **capability: object) -> None:
        for slot in self.slots:
            assert slot.check(busy=False, may_start=True) is None
        ready = Ready(
            capability=CAPABILITY.model_copy(update=capability),
            pids=tuple(range(self.num_ranks)),
            widths=widths,
        )
        self.send(ready)
        for slot in self.slots:
            assert self.received(slot) == [ready]
            slot.on_ready(ready)

    def send(self, message: Message | None, rank: int = 0) -> None:
        """Receive a message of a rank, None for a closed connection."""
        self.on_message(self.ranks, message, rank)

    def start(self, number: int, job_id: str, **changes: Any) -> Slot:
        """Have a slot run a job."""
        slot = self.slots[number]
        slot.start_job(
            RunJob(**{"job_id": job_id, "order": LONG, "folder": Path("/spool") / job_id, **changes})
        )
        return slot

    def received(self, slot: Slot) -> list[Message | None]:
        """Return the messages that a supervisor got since the last call."""
        inbox, messages = self.inboxes[self.slots.index(slot)], []
        while not inbox.empty():
            event = inbox.get()
            assert event.process in self.starts
            messages.append(event.message)
        return messages

    def runs(self, job_id: str) -> list[tuple[int, ...]]:
        """Return the ranks that were told to run a job, for each of its runs."""
        runs: dict[int, list[int]] = {}
        for rank, message in self.ranks.received:
            if isinstance(message, RunJob) and message.job_id == job_id:
                runs.setdefault(id(message), []).append(rank)
        return [tuple(run) for run in runs.values()]

    def last_run(self, job_id: str) -> RunJob:
        return next(
            message
            for _, message in reversed(self.ranks.received)
            if isinstance(message, RunJob) and message.job_id == job_id
        )

    def stops(self) -> list[tuple[int, str, str]]:
        """Return the stop requests to the ranks: rank, job and reason."""
        return [
            (rank, message.job_id, message.reason)
            for rank, message in self.ranks.received
            if isinstance(message, StopJob)
        ]

    def save(self, job_id: str, step: int) -> Checkpoint:
        """Have the ranks save a checkpoint of a job."""
        name = f"state-0-denoise-{step}.safetensors"
        checkpoint = Checkpoint(segment=0, stage="denoise", step=step, state=name)
        self.send(CheckpointSaved(job_id=job_id, checkpoint=checkpoint))
        return checkpoint

    def stop_for_resize(self, job_id: str, step: int = 3) -> Checkpoint:
        """Have the ranks save and stop a job."""
        checkpoint = self.save(job_id, step)
        self.send(JobStopped(job_id=job_id, reason="resize"))
        return checkpoint

    def report(self, job_id: str, fraction: float, eta_s: float = 1000.0, phase: Any = "denoise") -> None:
        progress = Progress(phase=phase, fraction=fraction, eta_s=eta_s)
        self.send(ProgressReport(job_id=job_id, progress=progress, timings_s={"denoise": fraction}))
