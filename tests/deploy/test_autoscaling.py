"""The chart's triggers ask for as many pods as the rule that is simulated."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.autoscaling import (
    GPU_S_PER_GPU,
    POLL_S,
    Demand,
    PodAutoscaler,
    replicas_wanted,
)
from tests.deploy.promql import Labels, Samples, evaluate
from tests.deploy.test_helm_chart import SMALL, named, render

PER_POOL = {
    "longcat_pool_groups": "num_groups",
    "longcat_pool_busy_share": "busy_share",
    "longcat_pool_queued_jobs": "num_queued",
    "longcat_pool_held_jobs": "num_held",
    "longcat_pool_backlog_gpu_seconds": "backlog_gpu_s",
}


@dataclass(frozen=True)
class PoolState:
    """What the metrics of a pool show. A chart's pool has several while its weights are replaced."""

    num_groups: int
    num_busy: int
    num_queued: int
    num_held: int
    backlog_gpu_s: float

    @property
    def busy_share(self) -> float:
        return self.num_busy / self.num_groups if self.num_groups else 0.0


def pool_states() -> st.SearchStrategy[PoolState]:
    return st.builds(
        lambda num_groups, idle, num_held, startable, backlog_gpu_s: PoolState(
            num_groups=num_groups,
            num_busy=max(0, num_groups - idle),
            num_queued=num_held + startable,
            num_held=num_held,
            backlog_gpu_s=backlog_gpu_s if startable else 0.0,
        ),
        st.integers(0, 300),
        st.integers(0, 300),
        st.integers(0, 50),
        st.integers(0, 1000),
        st.floats(0, 1e6),
    )


@cache
def scaled_object(
    *, gpus: int, context_parallel: int | str = 0, gpu_s_per_replica: float = 0
) -> dict[str, Any]:
    pool = {
        "gpus": gpus,
        "contextParallel": context_parallel,
        "autoscaling": {"enabled": True, "backlogGpuSecondsPerReplica": gpu_s_per_replica},
    }
    monitoring = {"prometheusUrl": "http://prometheus:9090", "serviceMonitor": True}
    values = {**SMALL, "pools": {"main": pool}, "monitoring": monitoring}
    spec: dict[str, Any] = named(render(values), "ScaledObject")["spec"]
    return spec


RELEASE = {"namespace": "ours", "service": "video-longcat-video-api-ops"}
OTHER_RELEASE = {"namespace": "staging", "service": "video-longcat-video-api-ops"}


def samples_of(
    pools: list[PoolState], num_without_group: int, *, num_api: int = 2, redis_up: int = 1
) -> Samples:
    """Return what some API processes export, and what must not count: another model, and another release."""
    other = PoolState(num_groups=9, num_busy=9, num_queued=9, num_held=0, backlog_gpu_s=9e9)
    named_pools = [(f"LongCat-Video-{at:08x}", pool) for at, pool in enumerate(pools)]
    found: dict[str, dict[Labels, float]] = defaultdict(dict)
    for release, states, waiting, up in (
        (RELEASE, [*named_pools, ("Other-0123abcd", other)], num_without_group, redis_up),
        (OTHER_RELEASE, [("LongCat-Video-00000000", other)], 9, 1),
    ):
        for number in range(num_api):
            api = frozenset({**release, "instance": str(number)}.items())
            found["longcat_redis_up"][api] = up
            if not up:
                continue
            found["longcat_jobs_without_group"][api] = waiting
            for metric, field in PER_POOL.items():
                found[metric] |= {api | {("pool", name)}: float(getattr(at, field)) for name, at in states}
    return found


@pytest.mark.parametrize(
    ("shape", "gpu_s_per_replica", "groups_per_replica"),
    [
        ({"gpus": 1}, GPU_S_PER_GPU, 1),
        ({"gpus": 0}, GPU_S_PER_GPU, 1),
        ({"gpus": 8, "context_parallel": 4}, 8 * GPU_S_PER_GPU, 2),
        ({"gpus": 8, "context_parallel": "auto"}, 8 * GPU_S_PER_GPU, 8),
        ({"gpus": 8, "gpu_s_per_replica": 900}, 900, 1),
    ],
    ids=["one GPU", "CPU", "two groups", "elastic", "configured"],
)
@settings(max_examples=50)
@given(pools=st.lists(pool_states(), max_size=2), num_without_group=st.integers(0, 3))
def test_triggers_of_the_chart_want_what_the_simulated_rule_wants(
    shape: dict[str, Any],
    gpu_s_per_replica: float,
    groups_per_replica: int,
    pools: list[PoolState],
    num_without_group: int,
):
    demand = Demand(
        num_queued=max((pool.num_queued - pool.num_held for pool in pools), default=0) + num_without_group,
        backlog_gpu_s=max((pool.backlog_gpu_s for pool in pools), default=0.0),
        num_busy=sum(pool.num_busy for pool in pools),
    )
    triggers = [trigger["metadata"] for trigger in scaled_object(**shape)["triggers"]]
    samples = samples_of(pools, num_without_group)
    values = [evaluate(each["query"], samples) for each in triggers]
    assert {each["threshold"] for each in triggers} == {"1"}
    assert values == pytest.approx(
        replicas_wanted(demand, gpu_s_per_replica=gpu_s_per_replica, groups_per_replica=groups_per_replica)
    )


def test_jobs_that_pools_of_one_model_share_are_counted_once():
    """The pool of a capability that is gone is remembered, and could run the same jobs."""
    gone, present = (PoolState(groups, 0, num_queued=5, num_held=0, backlog_gpu_s=600.0) for groups in (0, 1))
    (demand, _) = scaled_object(gpus=1)["triggers"]
    assert evaluate(demand["metadata"]["query"], samples_of([gone, present], 0)) == 1


@pytest.mark.parametrize(
    "samples",
    [{}, samples_of([PoolState(1, 1, 5, 0, 600.0)], 0, redis_up=0)],
    ids=["nothing is exported", "Redis is away"],
)
def test_nothing_is_scaled_while_the_demand_is_not_known(samples):
    """KEDA takes no value for an error with `ignoreNullValues: "false"`, and leaves the pods as they are."""
    for trigger in scaled_object(gpus=1)["triggers"]:
        assert evaluate(trigger["metadata"]["query"], samples) is None
        assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert "fallback" not in scaled_object(gpus=1)


def test_no_pod_is_wanted_while_there_is_no_job():
    samples = samples_of([], 0)
    assert [evaluate(each["metadata"]["query"], samples) for each in scaled_object(gpus=1)["triggers"]] == [
        0,
        0,
    ]


def test_autoscaler_is_simulated_with_the_settings_of_the_chart():
    spec, simulated = scaled_object(gpus=1), PodAutoscaler(lambda demand: ())
    scale_down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert spec["pollingInterval"] == POLL_S
    assert spec["cooldownPeriod"] == simulated.cooldown_s
    assert scale_down["stabilizationWindowSeconds"] == simulated.stabilization_s
    assert {each["metadata"]["activationThreshold"] for each in spec["triggers"]} == {"0"}
    assert not any("metricType" in each for each in spec["triggers"])  # AverageValue is KEDA's default
