"""What is measured: requests by route, and how the queue stands whenever somebody asks.

Each app has its own registry, so that two in one process do not share numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.capability import groups
from jobs.errors import Unavailable
from jobs.store.measures import Measure, measures, waiting
from jobs.store.outbox import Outbox
from service.backend import Backend
from service.http.response_status import StatusRecorder, route_template

BOUNDS = tuple(2.0 ** (n / 2) for n in range(-10, 33))  # from 31 ms to 18 h
_METHODS = {"GET", "HEAD", "POST", "DELETE"}


class Metrics:
    """The numbers of one app."""

    def __init__(self, backend: Backend) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Queue(backend))
        self._registry.register(_Jobs(backend.redis))
        self._requests = Counter(
            "longcat_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "longcat_http_request_seconds",
            "Time to the end of the answer.",
            ["method", "route"],
            registry=self._registry,
        )

    def observe(self, scope: Scope, status: int, duration_s: float) -> None:
        """Count a request under its route's template, so that ids make no labels."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = route_template(scope)
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(duration_s)

    def text(self) -> bytes:
        """All numbers in Prometheus' format."""
        return generate_latest(self._registry)


class MeasuredRequests:
    """ASGI middleware: tells `Metrics` of every answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        watched = StatusRecorder(send)
        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.observe(scope, watched.status, time.perf_counter() - began)


class _Jobs(Collector):
    """What the job_store measured as jobs went; it lies in Redis, so every process tells the same."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            found = measures(self._redis)
        except Unavailable:
            return []
        return [series.metric([m for m in found if m.name == series.name]) for series in SERIES]


@dataclass(frozen=True)
class Series:
    """How a measure of the job_store is shown: a histogram if it is a distribution, else a counter."""

    name: str
    text: str
    label: str | None = None
    is_distribution: bool = False

    def metric(self, found: list[Measure]) -> Metric:
        """In Prometheus' form."""
        return self._histogram(found) if self.is_distribution else self._counter(found)

    def _counter(self, found: list[Measure]) -> Metric:
        family = CounterMetricFamily(f"longcat_{self.name}", self.text, labels=self._labels)
        for measure in found:
            family.add_metric([measure.label][: len(self._labels)], measure.sum)
        return family

    def _histogram(self, found: list[Measure]) -> Metric:
        family = HistogramMetricFamily(f"longcat_{self.name}", self.text, labels=self._labels)
        for measure in found:
            labels = [measure.label][: len(self._labels)]
            family.add_metric(labels, _cumulated(measure.buckets), measure.sum)
        return family

    @property
    def _labels(self) -> list[str]:
        return [self.label] if self.label else []


SERIES = (
    Series("wait_seconds", "From submission to the first start.", "priority", is_distribution=True),
    Series("run_seconds", "Time that a job ran, all attempts.", "task", is_distribution=True),
    Series("phase_seconds", "Time of a job in a phase.", "phase", is_distribution=True),
    Series("step_seconds", "Denoising time of a job for each step.", "task", is_distribution=True),
    Series(
        "gpu_seconds_per_video_second", "GPUs times run time, by film length.", "task", is_distribution=True
    ),
    Series("forecast_ratio", "Actual time to the end over that told at submission.", is_distribution=True),
    Series(
        "eta_error_ratio", "How far an ETA was off, as a share of what came.", "eta", is_distribution=True
    ),
    Series("forecast_seconds", "Time to the end: predicted, actual, and how far apart.", "kind"),
    Series("jobs_ended", "Jobs by how they ended.", "status"),
    Series("failures", "Failed jobs by error code.", "code"),
    Series("attempts", "Starts that ended jobs took."),
    Series("put_back", "Jobs that went back to the queue, and why.", "cause"),
    Series("uploads", "Films stored, or not.", "outcome"),
    Series("uploaded_bytes", "Size of films stored."),
    Series("webhook_deliveries", "Webhooks sent, by outcome.", "outcome"),
)


def _cumulated(buckets: dict[float, int]) -> list[tuple[str, float]]:
    """Bounds as Prometheus has them: the same for all series, each with all values up to it."""
    counts = [(bound, sum(n for b, n in buckets.items() if b <= bound)) for bound in BOUNDS]
    return [*((f"{bound:.4g}", count) for bound, count in counts), ("+Inf", sum(buckets.values()))]


class _Queue(Collector):
    """Asks Redis when it is asked itself, so that every process of the service tells the same."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("longcat_redis_up", "Whether Redis answers.")
        try:
            measured = [self._jobs(), *self._waiting(), self._groups(), *self._webhooks()]
        except Unavailable:
            measured = []
        up.add_metric([], 1 if measured else 0)
        return [up, *measured]

    def _jobs(self) -> Metric:
        jobs = GaugeMetricFamily("longcat_jobs", "Jobs by status.", labels=["status"])
        for status, count in self._backend.jobs.counts().items():
            jobs.add_metric([status], count)
        return jobs

    def _waiting(self) -> tuple[Metric, Metric]:
        depth = GaugeMetricFamily("longcat_queued_jobs", "Jobs that wait.", labels=["priority"])
        age = GaugeMetricFamily(
            "longcat_oldest_queued_seconds", "Age of the oldest queued job.", labels=["priority"]
        )
        for line in waiting(self._backend.redis):
            depth.add_metric([line.priority], line.num_jobs)
            age.add_metric([line.priority], line.oldest_s)
        return depth, age

    def _groups(self) -> Metric:
        found = GaugeMetricFamily("longcat_groups", "Worker groups by state.", labels=["state"])
        states = [group.state for group in groups(self._backend.redis)]
        for state in sorted(set(states)):
            found.add_metric([state], states.count(state))
        return found

    def _webhooks(self) -> Iterable[Metric]:
        backlog = Outbox(self._backend.redis).backlog()
        yield GaugeMetricFamily(
            "longcat_webhook_backlog", "Webhooks that are to be sent.", backlog.num_deliveries
        )
        yield GaugeMetricFamily(
            "longcat_webhook_oldest_due_seconds",
            "How long ago the oldest unsent webhook became due.",
            backlog.oldest_due_s,
        )
        yield GaugeMetricFamily(
            "longcat_webhook_paused_hosts",
            "Webhook receivers that are paused since they do not answer.",
            backlog.num_paused_hosts,
        )
