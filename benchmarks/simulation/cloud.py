"""Simulate worker pods that an autoscaler starts and stops, on machines that a cloud may take back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.simulation.autoscaling import POLL_S, Demand, PodAutoscaler
from benchmarks.simulation.fleets import Group, Pods
from benchmarks.simulation.queues import Clock, Queue
from benchmarks.simulation.simulator import Outcome, Simulation
from benchmarks.simulation.trace import DAY_S, Arrival


@dataclass(frozen=True)
class Cloud:
    """How machines come and go.

    Attributes:
        cold_start_s: the shortest and the longest time from a new pod to its first job: a machine, the image
            and the weights.
        lost_after_s: the mean time until the cloud takes a machine back; None for never.
        unannounced: the share of these that vanish at once. The others are announced early enough to save
            and requeue the job, which takes one step of the model; clouds give 30 s to two minutes.
    """

    cold_start_s: tuple[float, float] = (180.0, 420.0)
    lost_after_s: float | None = None
    unannounced: float = 0.2


@dataclass(frozen=True)
class Sample:
    """The pods and the queue at a time."""

    at_s: float
    num_pods: int
    num_busy: int
    num_queued: int


class CloudSimulation(Simulation):
    """One run of a trace on pods.

    Attributes:
        gpu_s: the time that all pods existed, which is paid for.
        samples: one for each poll of the autoscaler.
        num_drained: jobs that were saved and requeued, because a pod was removed or its machine announced
            its end.
        num_lost: machines that the cloud took back.
        num_from_zero: starts of the first pod.
    """

    def __init__(
        self,
        queue: Queue,
        clock: Clock,
        autoscaler: PodAutoscaler,
        cloud: Cloud = Cloud(),
        *,
        num_pods: int = 0,
        seed: int = 0,
    ) -> None:
        self._pods = Pods()
        super().__init__(queue, self._pods, clock, seed=seed)
        self._autoscaler = autoscaler
        self._cloud = cloud
        self._until_s = DAY_S
        self.gpu_s = 0.0
        self.samples: list[Sample] = []
        self.num_drained = self.num_lost = self.num_from_zero = 0
        for _ in range(num_pods):
            self._add(self._pods.add(), cold_start_s=0.0)

    def run(self, trace: Sequence[Arrival]) -> list[Outcome]:
        """Return the outcomes of a day."""
        self._at(0.0, self._poll)
        return super().run(trace)

    @property
    def _is_over(self) -> bool:
        return self._clock.now_s >= self._until_s and not self._jobs

    def _poll(self) -> None:
        now_s, pods = self._clock.now_s, self._pods
        num_queued, backlog_gpu_s = self._queue.backlog()
        if self.samples:
            self.gpu_s += len(pods) * (now_s - self.samples[-1].at_s)
        self.samples.append(Sample(now_s, len(pods), pods.num_busy, num_queued))
        if self._is_over:
            return
        wanted = self._autoscaler.scale(now_s, len(pods), Demand(num_queued, backlog_gpu_s, pods.num_busy))
        self.num_from_zero += not len(pods) and wanted > 0
        while len(pods) < wanted:
            self._add(pods.add())
        while len(pods) > wanted:
            self._drain_pod(pods.remove())
        self._at(now_s + POLL_S, self._poll)

    def _add(self, pod: Group, cold_start_s: float | None = None) -> None:
        if cold_start_s is None:
            cold_start_s = self._random.uniform(*self._cloud.cold_start_s)
        self._at(self._clock.now_s + cold_start_s, partial(self._ready, pod))
        if self._cloud.lost_after_s:
            lost_s = self._random.expovariate(1 / self._cloud.lost_after_s)
            self._at(self._clock.now_s + lost_s, partial(self._lose, pod))

    def _ready(self, pod: Group) -> None:
        if pod in self._pods:
            self._pods.release(pod)

    def _lose(self, pod: Group) -> None:
        if pod not in self._pods or self._is_over:
            return
        self.num_lost += 1
        if self._random.random() >= self._cloud.unannounced:
            self._drain_pod(pod)
        elif run := self._runs.get(pod):
            self._abandon(run)
        self._add(self._pods.replace(pod))

    def _drain_pod(self, pod: Group) -> None:
        if run := self._runs.get(pod):
            self.num_drained += 1
            self._drain(run)
