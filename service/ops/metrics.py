"""Export metrics for Prometheus: HTTP requests of this process, and the job store's counters from Redis.

Each app has its own registry, so that two apps in one process do not share numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.errors import JOB_ERRORS, Unavailable
from jobs.order import PRIORITIES
from jobs.registration import GroupState, live_groups
from jobs.requirement import can_run
from jobs.store.memory import memory
from jobs.store.metrics import Counters, UnreadableKind, counters, num_set_aside
from jobs.store.outbox import Outbox, Outcome
from jobs.store.queue_depths import QueueDepth, queue_depths, recent_runs
from service.backend import Backend
from service.http.response_status import StatusRecorder, route_template
from service.ops.storage_probe import MAX_SILENCE_S, StorageProbe

_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE"}


class Metrics:
    """The metrics of one app."""

    def __init__(self, backend: Backend, storage_probe: StorageProbe) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Queue(backend))
        self._registry.register(_Jobs(backend))
        Gauge(
            "longcat_storage_up",
            f"1 if the storage has answered this process within the last {MAX_SILENCE_S:.0f} s.",
            registry=self._registry,
        ).set_function(lambda: float(storage_probe.is_up))
        self._requests = Counter(
            "longcat_http_requests",
            "HTTP requests.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._internal_errors = Counter(
            "longcat_http_internal_errors",
            "Requests that were answered with 500.",
            registry=self._registry,
        )
        self._seconds = Histogram(
            "longcat_http_request_seconds",
            "Time to the end of the response.",
            ["method", "route"],
            registry=self._registry,
        )

    def observe(self, scope: Scope, status: int, duration_s: float) -> None:
        """Count a request under its route's template, so that ids do not become labels."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = route_template(scope)
        self._requests.labels(method, route, status).inc()
        self._internal_errors.inc(status == 500)
        self._seconds.labels(method, route).observe(duration_s)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class MeasuredRequests:
    """ASGI middleware that reports every response to `Metrics`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request and observe its response."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        watched = StatusRecorder(send)
        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.observe(scope, watched.status, time.perf_counter() - began)


@dataclass(frozen=True)
class Series:
    """The exported form of a counter of the job store: a counter, or a summary of sum and count.

    Labels in `always` are exported from the start, as 0, so that their first increase shows.
    """

    name: str
    text: str
    label: str | None = None
    is_summary: bool = False
    always: tuple[str, ...] = ()

    def metric(self, found: Counters) -> Metric:
        """Return the series in Prometheus' form."""
        return self._summary(found) if self.is_summary else self._counter(found)

    def _counter(self, found: Counters) -> Metric:
        family = CounterMetricFamily(f"longcat_{self.name}", self.text, labels=self._labels)
        own = {label: value for (name, label), value in found.items() if name == self.name}
        for label, value in {**dict.fromkeys(self.always, 0.0), **own}.items():
            family.add_metric([label][: len(self._labels)], value)
        return family

    def _summary(self, found: Counters) -> Metric:
        family = SummaryMetricFamily(f"longcat_{self.name}", self.text, labels=self._labels)
        for (name, label), count in found.items():
            if name == f"{self.name}_count":
                total = found[f"{self.name}_sum", label]
                family.add_metric([label][: len(self._labels)], count_value=int(count), sum_value=total)
        return family

    @property
    def _labels(self) -> list[str]:
        return [self.label] if self.label else []


SERIES = (
    Series("wait_seconds", "Time from submission to the first start.", "priority", is_summary=True),
    Series("run_seconds", "Time that a job ran, all attempts together.", "task", is_summary=True),
    Series("gpu_seconds", "GPU time of ended jobs, all attempts together.", "task"),
    Series("lost_gpu_seconds", "GPU time whose work was lost before it was saved, of ended jobs.", "task"),
    Series("cost", "Cost of ended jobs at the operator's price.", "currency"),
    Series("phase_seconds", "Time that a job spent in a phase.", "phase", is_summary=True),
    Series("step_seconds", "Denoising time of a job, for each step.", "task", is_summary=True),
    Series(
        "group_start_seconds", "Time from the start of a group until it takes jobs.", "pool", is_summary=True
    ),
    Series("video_seconds", "Length of the videos made.", "task"),
    Series("jobs_ended", "Jobs by final status.", "status", always=("succeeded", "failed", "cancelled")),
    Series(
        "deadlines",
        "Ended jobs with a deadline by outcome, without cancelled ones.",
        "outcome",
        always=("met", "missed"),
    ),
    Series(
        "failures",
        "Failed jobs by error code.",
        "code",
        always=tuple(error.code for error in JOB_ERRORS),
    ),
    Series("attempts", "Starts of ended jobs."),
    Series(
        "requeues",
        "Jobs that were requeued, by cause.",
        "cause",
        always=("crashed", "drained", "preempted", "unreadable"),
    ),
    Series("uploads", "Uploads of videos by outcome.", "outcome", always=("stored", "failed")),
    Series("uploaded_bytes", "Size of the videos uploaded."),
    Series(
        "webhook_deliveries",
        "Attempts to deliver webhooks by outcome.",
        "outcome",
        always=get_args(Outcome),
    ),
    Series(
        "unreadable_records",
        "Stored documents that this release could not read, by kind.",
        "kind",
        always=get_args(UnreadableKind),
    ),
)


POOL_GAUGES = {
    "longcat_pool_groups": "Groups that are up: all but broken ones.",
    "longcat_pool_busy_share": "Share of these groups that run a job.",
    "longcat_pool_queued_jobs": "Queued jobs that the pool can run.",
    "longcat_pool_held_jobs": "Those of them that a limit on running jobs holds back.",
    "longcat_pool_oldest_queued_seconds": "Longest time since one of the others was queued.",
    "longcat_pool_backlog_work_units": "Size of the others, if jobs held back have the mean size.",
    "longcat_pool_backlog_gpu_seconds": "GPU time that the others are expected to take; at first 0.",
}
"""Gauges of each pool. A job counts in every pool that can run it."""


class _Jobs(Collector):
    """Exports the counters of the job store. They are in Redis, so every process exports the same numbers."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            found = counters(self._backend.redis)
            pools = self._backend.fleet().pools
        except Unavailable:
            return []
        no_starts = {
            (f"group_start_seconds_{part}", pool.name): 0.0 for pool in pools for part in ("sum", "count")
        }
        return [series.metric({**no_starts, **found}) for series in SERIES]


class _Queue(Collector):
    """Exports the state of the queue, read from Redis at each scrape."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("longcat_redis_up", "1 if Redis responds.")
        try:
            depths = queue_depths(self._backend.redis)
            measured = [
                *(self._jobs(), *self._depths(depths), self._set_aside()),
                *(*self._groups(), *self._pools(depths), *self._webhooks(), *self._memory()),
            ]
        except Unavailable:
            measured = []
        up.add_metric([], 1 if measured else 0)
        return [up, *measured]

    def _jobs(self) -> Metric:
        jobs = GaugeMetricFamily("longcat_jobs", "Jobs by status.", labels=["status"])
        for status, count in self._backend.job_store.client.counts().items():
            jobs.add_metric([status], count)
        return jobs

    def _depths(self, depths: Sequence[QueueDepth]) -> Iterable[Metric]:
        depth = GaugeMetricFamily("longcat_queued_jobs", "Queued jobs.", labels=["priority"])
        held = GaugeMetricFamily(
            "longcat_held_jobs", "Queued jobs that a limit on running jobs holds back.", labels=["priority"]
        )
        age = GaugeMetricFamily(
            "longcat_oldest_queued_seconds",
            "Longest time since a job that may start was queued.",
            labels=["priority"],
        )
        for priority in PRIORITIES:
            own = [each for each in depths if each.priority == priority]
            depth.add_metric([priority], sum(each.num_jobs for each in own))
            held.add_metric([priority], sum(each.num_held for each in own))
            age.add_metric([priority], max((each.oldest_s for each in own), default=0.0))
        return depth, held, age

    def _set_aside(self) -> Metric:
        return GaugeMetricFamily(
            "longcat_set_aside_jobs",
            "Queued jobs that some worker could not read.",
            num_set_aside(self._backend.redis),
        )

    def _groups(self) -> Iterable[Metric]:
        groups = live_groups(self._backend.redis)
        by_state = GaugeMetricFamily("longcat_groups", "Worker groups by state.", labels=["state"])
        states = [group.state for group in groups]
        for state in get_args(GroupState):
            by_state.add_metric([state], states.count(state))
        unavailable = GaugeMetricFamily(
            "longcat_group_unavailable", "1 for each group that is broken or full.", labels=["group", "state"]
        )
        for group in groups:
            if group.state in {"broken", "full"}:
                unavailable.add_metric([group.group, group.state], 1)
        return by_state, unavailable

    def _pools(self, depths: Sequence[QueueDepth]) -> Iterable[Metric]:
        """Return a series for each pool that is known, also for those without a group."""
        fleet = self._backend.fleet()
        runs = recent_runs(self._backend.redis)
        gauges = {name: GaugeMetricFamily(name, text, labels=["pool"]) for name, text in POOL_GAUGES.items()}
        for pool in fleet.pools:
            own = [each for each in depths if can_run(pool.capability, each.requirement)]
            num_up = len(pool.groups_up)
            num_busy = sum(group.state == "busy" for group in pool.groups)
            run_s = sum(each.expected_run_s(runs) for each in own)
            values = (
                num_up,
                num_busy / num_up if num_up else 0.0,
                sum(each.num_jobs for each in own),
                sum(each.num_held for each in own),
                max((each.oldest_s for each in own), default=0.0),
                sum(each.num_startable * each.mean_work_units for each in own),
                run_s * pool.capability.context_parallel,
            )
            for gauge, value in zip(gauges.values(), values, strict=True):
                gauge.add_metric([pool.name], value)
        yield from gauges.values()
        num_without_group = sum(each.num_jobs for each in depths if not fleet.pools_for(each.requirement))
        yield GaugeMetricFamily(
            "longcat_jobs_without_group", "Queued jobs that no live group can run.", num_without_group
        )

    def _memory(self) -> Iterable[Metric]:
        found = memory(self._backend.redis)
        yield GaugeMetricFamily("longcat_redis_memory_bytes", "Memory that Redis uses.", found.used_bytes)
        yield GaugeMetricFamily(
            "longcat_redis_max_memory_bytes", "The maxmemory of Redis, 0 if it has none.", found.max_bytes
        )

    def _webhooks(self) -> Iterable[Metric]:
        backlog = Outbox(self._backend.redis).backlog()
        yield GaugeMetricFamily("longcat_webhook_backlog", "Webhooks to be sent.", backlog.num_deliveries)
        yield GaugeMetricFamily(
            "longcat_webhook_oldest_due_seconds",
            "How long ago the oldest unsent webhook became due.",
            backlog.oldest_due_s,
        )
        yield GaugeMetricFamily(
            "longcat_webhook_paused_hosts",
            "Webhook receivers that are paused because they do not respond.",
            backlog.num_paused_hosts,
        )
