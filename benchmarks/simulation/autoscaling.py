"""Decide how many worker pods a pool has: the rule of the Helm chart, and what Kubernetes makes of it.

`replicas_wanted` is the rule. `deploy/helm/longcat-video/templates/workers.yaml` has it in PromQL, and a test
holds both equal. KEDA gives the values to a HorizontalPodAutoscaler, which `PodAutoscaler` models as its
documentation describes: a tolerance of 10 %, no more than a doubling or four pods in 15 s, and a scale-down
to the largest number that was wanted in the stabilization window. KEDA itself goes from zero to one pod, and
from one to zero after the cooldown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

GPU_S_PER_GPU = 600.0
"""The chart's default of `backlogGpuSecondsPerReplica`, for each GPU of a pod."""

TOLERANCE = 0.1
POLL_S = 15.0
MOST_ADDED = 4


@dataclass(frozen=True)
class Demand:
    """What a pool has to do, as its metrics tell.

    Attributes:
        num_queued: queued jobs that may start.
        backlog_gpu_s: GPU time that they are expected to take.
        num_busy: groups that run a job.
    """

    num_queued: int
    backlog_gpu_s: float
    num_busy: int


Rule = Callable[[Demand], tuple[float, ...]]
"""Returns the number of pods that each trigger wants, not rounded."""


def replicas_wanted(
    demand: Demand,
    *,
    gpu_s_per_replica: float = GPU_S_PER_GPU,
    groups_per_replica: int = 1,
) -> tuple[float, float]:
    """Return what the two triggers of the chart want.

    The first adds pods for the backlog to those that are busy. The second wants one pod for any queued job,
    also while nothing is known about its GPU time.

    Args:
        demand: what the pool has to do.
        gpu_s_per_replica: one more pod for each so many GPU-seconds of backlog.
        groups_per_replica: groups that each pod has.
    """
    return (
        demand.num_busy / groups_per_replica + demand.backlog_gpu_s / gpu_s_per_replica,
        float(min(1, demand.num_queued)),
    )


def largest(demand: Demand, *, gpu_s_per_replica: float = 1800.0) -> tuple[float, float, float]:
    """Return what three triggers want, one of them for the backlog alone: an earlier rule of the chart."""
    return demand.backlog_gpu_s / gpu_s_per_replica, float(min(1, demand.num_queued)), float(demand.num_busy)


@dataclass
class PodAutoscaler:
    """KEDA and a HorizontalPodAutoscaler over one StatefulSet.

    Attributes:
        rule: what the triggers want.
        min_pods: the least number of pods; 0 allows the pool to go.
        max_pods: the largest number of pods.
        stabilization_s: a scale-down waits until no more pods were wanted for so long.
        cooldown_s: how long no trigger has to be active before the last pod goes.
    """

    rule: Rule
    min_pods: int = 0
    max_pods: int = 1000
    stabilization_s: float = 600.0
    cooldown_s: float = 600.0
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)
    _active_s: float = 0.0

    def scale(self, now_s: float, num_pods: int, demand: Demand) -> int:
        """Return how many pods there are to be. Call it every `POLL_S` seconds."""
        values = self.rule(demand)
        is_active = any(value > 0 for value in values)
        if is_active:
            self._active_s = now_s
        if num_pods == 0:
            self._wanted.clear()
            return max(self.min_pods, 1 if is_active else 0)
        if self.min_pods == 0 and now_s - self._active_s >= self.cooldown_s:
            return 0
        wanted = max(_pods_for(value, num_pods) for value in values)
        wanted = min(max(wanted, self.min_pods, 1), self.max_pods)
        self._wanted.append((now_s, wanted))
        while self._wanted[0][0] < now_s - self.stabilization_s:
            self._wanted.popleft()
        if wanted > num_pods:
            return min(wanted, max(2 * num_pods, num_pods + MOST_ADDED))
        return min(num_pods, max(recent for _, recent in self._wanted))


def _pods_for(value: float, num_pods: int) -> int:
    """Return the pods that a trigger wants; as many as there are if the difference is small."""
    return num_pods if abs(value / num_pods - 1) <= TOLERANCE else ceil(value)
