"""Simulate workers that divide their ranks among several jobs, as `worker.supervisor.allocation` says."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.simulation.fleets import Group
from benchmarks.simulation.queues import Claim, Clock, Queue
from benchmarks.simulation.simulator import RESTART_S, Attempt, Simulation
from benchmarks.simulation.times import run_s, step_s
from worker.supervisor.allocation import SLOTS_PER_RANK, JobInHand, choose_widths, place

CHANGE_S = 1.0
"""What a change of width costs a job, in which its latents are saved and read again. It is not measured."""


@dataclass(eq=False)
class Worker:
    """A worker whose ranks may have several jobs, each in one of its slots. The queue sees a group in each.

    Attributes:
        idle: the slots without a job.
        blocks: the ranks of each job that runs, by its name.
        is_up: whether its ranks run.
        is_changing: jobs finish their present steps before their ranks change.
    """

    num_ranks: int
    idle: deque[Group]
    blocks: dict[str, range] = field(default_factory=dict)
    is_up: bool = True
    is_changing: bool = False


class ElasticFleet:
    """Workers that divide their ranks.

    Args:
        num_workers: how many there are.
        num_ranks: the ranks of each, a power of two.
    """

    def __init__(self, num_workers: int, num_ranks: int) -> None:
        self.num_groups = num_workers * num_ranks
        self.workers: list[Worker] = []
        self._worker_of: dict[Group, Worker] = {}
        for number in range(num_workers):
            slots = [Group(f"worker-{number}-{slot}", 1) for slot in range(SLOTS_PER_RANK * num_ranks)]
            self.workers.append(Worker(num_ranks, deque(slots)))
            self._worker_of.update(dict.fromkeys(slots, self.workers[-1]))

    def worker_of(self, group: Group) -> Worker:
        """Return the worker that has this slot."""
        return self._worker_of[group]

    def take(self, num_waiting: int) -> Group | None:
        """Take a slot of the worker that has the most idle ones."""
        worker = max(
            (worker for worker in self.workers if worker.is_up),
            key=lambda worker: len(worker.idle),
            default=None,
        )
        return worker.idle.popleft() if worker and worker.idle else None

    def release(self, group: Group) -> None:
        """Return a slot."""
        self.worker_of(group).idle.append(group)


class ElasticSimulation(Simulation):
    """One run of a trace on workers that divide their ranks.

    If a rank dies, its job crashes. The other jobs of its worker go on from their checkpoints.

    Attributes:
        num_changes: how often a job that ran got other ranks.
    """

    def __init__(
        self,
        queue: Queue,
        fleet: ElasticFleet,
        clock: Clock,
        *,
        mtbf_s: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(queue, fleet, clock, mtbf_s=mtbf_s, seed=seed)
        self._workers = fleet
        self.num_changes = 0

    def _start_jobs(self) -> None:
        super()._start_jobs()
        for worker in self._workers.workers:
            self._divide(worker)

    def _start(self, claim: Claim, group: Group) -> None:
        self._begin(claim, group)
        self._queue.report_gpus(claim.number, 0)  # it gets its ranks when those of its worker are divided

    def _give(self, run: Attempt, num_ranks: int, pause_s: float = 0.0) -> None:
        super()._give(run, num_ranks, pause_s)
        self._queue.report_gpus(run.number, num_ranks)

    def _runs_of(self, worker: Worker) -> dict[str, Attempt]:
        """Return the attempts of a worker by the name of the job, in the order in which it claimed them."""
        return {
            str(run.number): run
            for slot, run in self._runs.items()
            if self._workers.worker_of(slot) is worker
        }

    def _in_hand(self, worker: Worker) -> Sequence[JobInHand]:
        """Return the jobs of a worker as its policy sees them: how fast each really is, it does not know."""
        now_s = self._clock.now_s
        widths = [1 << exponent for exponent in range(worker.num_ranks.bit_length())]
        jobs = []
        for job_id, run in self._runs_of(worker).items():
            arrival, left = self._jobs[run.number].arrival, 1 - run.done_at(now_s)
            jobs.append(
                JobInHand(
                    job_id=job_id,
                    remaining_s={width: left * run_s(run.plan, width) for width in widths},
                    deadline_s=arrival.deadline_s and arrival.at_s + arrival.deadline_s - now_s,
                    width=run.num_ranks,
                    priority=arrival.priority,
                )
            )
        return jobs

    def _divide(self, worker: Worker, *, is_between_steps: bool = False) -> None:
        """Change the ranks of jobs: at once if none of them runs, else after the present steps."""
        if worker.is_changing:
            return
        runs, now_s = self._runs_of(worker), self._clock.now_s
        widths = choose_widths(self._in_hand(worker), worker.num_ranks, CHANGE_S)
        present = {job_id: block for job_id, block in worker.blocks.items() if job_id in runs}
        blocks = place(widths, present, worker.num_ranks)
        changed = [job_id for job_id in runs if blocks.get(job_id) != present.get(job_id)]
        running = [runs[job_id] for job_id in changed if job_id in present]
        if running and not is_between_steps:
            worker.is_changing = True
            wait_s = max(self._random.random() * step_s(run.plan, run.num_ranks) for run in running)
            self._at(now_s + wait_s, partial(self._finish_steps, worker))
            return
        for job_id in changed:
            self._give(runs[job_id], widths[job_id], CHANGE_S if runs[job_id].done_at(now_s) else 0.0)
        self.num_changes += len(running)
        worker.blocks = blocks

    def _finish_steps(self, worker: Worker) -> None:
        worker.is_changing = False
        self._divide(worker, is_between_steps=True)

    def _crash(self, run: Attempt) -> None:
        worker = self._workers.worker_of(run.group)
        self._abandon(run)
        worker.idle.append(run.group)
        for each in self._runs_of(worker).values():
            self._requeue_unsaved(each)
            worker.idle.append(each.group)
        worker.blocks = {}
        worker.is_up = False
        self._at(self._clock.now_s + RESTART_S, partial(setattr, worker, "is_up", True))

    def _requeue_unsaved(self, run: Attempt) -> None:
        """Requeue a job whose ranks were killed because another's died. This is no attempt of its own."""
        self._stop(run)
        self._jobs[run.number].lost_gpu_s += run.unsaved_gpu_s
        self._queue.requeue(run.number)
        self._num_waiting += 1
