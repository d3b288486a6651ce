"""Spans as OpenTelemetry's SDK sends them. Imported by `jobs.tracing` alone, where they are wanted.

A span's place in its trace is told as W3C's `traceparent`, in which form it goes through the queue with the
job. The SDK reads its own variables (`OTEL_…`): where the collector is, what is sampled, how long to batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Self

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OpenTelemetrySpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Values = Mapping[str, str | int]

_W3C = TraceContextTextMapPropagator()
_HEADER = "traceparent"


class Span:
    """Something that began and will end."""

    def __init__(self, span: OpenTelemetrySpan) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """Its place in its trace, for spans below it."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(self._span))
        return carrier[_HEADER]

    def note(self, values: Values) -> None:
        """More that is known of it."""
        self._span.set_attributes(values)

    def rename(self, name: str) -> None:
        """It turned out to be this."""
        self._span.update_name(name)

    def end(self, *, failed: bool = False, at: datetime | None = None) -> None:
        """It is over, now or since `at`."""
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(_ns(at))


class Tracing:
    """Begins spans, and sends those that ended in a thread of its own. Safe between threads."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("longcat")

    @classmethod
    def open(cls, process: str) -> Self:
        """Send to the collector that the environment names; `process` is a name where that has none."""
        named = Resource.create({SERVICE_NAME: process}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=named)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def begin(
        self,
        name: str,
        parent: str | None,
        values: Values,
        *,
        serves: bool = False,
        at: datetime | None = None,
    ) -> Span:
        """A span below `parent`, or a new trace without one; `serves` for what a client waits for."""
        context = _W3C.extract({_HEADER: parent} if parent else {})
        kind = SpanKind.SERVER if serves else SpanKind.INTERNAL
        return Span(self._tracer.start_span(name, context, kind, values, start_time=_ns(at)))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _ns(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1_000_000) * 1000
