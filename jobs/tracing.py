"""Send traces to an OpenTelemetry collector, where one is configured.

Both processes use OpenTelemetry's API directly. Without its SDK (the extra `[otel]`) or a collector, the API
does nothing. A span's context travels through the queue as `traceparent` of W3C Trace Context.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracerProvider, Span, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider

logger = logging.getLogger(__name__)

TRACER = "longcat"
_HEADER = "traceparent"


def open_tracing(process: str, *, wanted: bool) -> TracerProvider:
    """Return a provider of tracers that send to the collector which OpenTelemetry's variables name.

    Return one that does nothing if traces are not wanted, or if the SDK is not installed. `process` is the
    service name of the spans unless the environment has another one.
    """
    if not wanted:
        return NoOpTracerProvider()
    try:
        return _sdk_provider(process)
    except ModuleNotFoundError as error:
        logger.warning("no traces are sent: %s is missing, install the extra [otel]", error.name)
        return NoOpTracerProvider()


def close_tracing(provider: TracerProvider) -> None:
    """Send the spans that are left."""
    if not isinstance(provider, NoOpTracerProvider):
        provider.shutdown()  # type: ignore[attr-defined] # only the SDK's provider has it


def context_of(traceparent: str | None) -> Context:
    """Return the context in which a child of this span starts, an empty one without a span."""
    return TraceContextTextMapPropagator().extract({_HEADER: traceparent} if traceparent else {}, Context())


def traceparent_of(span: Span) -> str | None:
    """Return the context of a span for the queue and for log lines, None if it has none."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier.get(_HEADER)


def nanoseconds(time: datetime | None) -> int | None:
    """Return a time as OpenTelemetry counts it: nanoseconds since 1970."""
    return None if time is None else round(time.timestamp() * 1_000_000) * 1000


def _sdk_provider(process: str) -> SdkTracerProvider:
    # The SDK is an extra, and slow to import.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    resource = Resource.create({SERVICE_NAME: process}).merge(OTELResourceDetector().detect())
    provider = SdkTracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
