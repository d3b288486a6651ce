"""Write log lines as text or JSON, with the request, job and trace that they belong to.

Every process calls `set_up_log` once. Lines inside `about` carry its names, from the request that submitted a
job to the ranks that run it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Literal

from structlog.contextvars import bound_contextvars, get_contextvars
from structlog.processors import JSONRenderer, format_exc_info
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, WrappedLogger

from jobs.record import Job

LogFormat = Literal["text", "json"]


def set_up_log(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Write all lines of this process to its standard error."""
    render = JSONRenderer(ensure_ascii=False) if log_format == "json" else _render_text
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ProcessorFormatter(processors=[_add_fields, format_exc_info, render]))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def about(names: Mapping[str, str]) -> AbstractContextManager[None]:
    """Add names to the lines of this thread or task, and of what runs in a copy of its context."""
    return bound_contextvars(**names)


def current_names() -> Mapping[str, str]:
    """Return the names that lines carry here."""
    return get_contextvars()


def names_of(job: Job) -> dict[str, str]:
    """Return the names for lines about a job; `traceparent` is that of W3C Trace Context."""
    names = {"job_id": job.id, "request_id": job.request_id, "traceparent": job.traceparent}
    return {name: value for name, value in names.items() if value}


def _add_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Return the fields of a line in their order."""
    record: logging.LogRecord = event["_record"]
    names = dict(current_names())
    if traceparent := names.pop("traceparent", None):
        names["trace_id"] = traceparent.split("-")[1]
    fields: EventDict = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        "message": event["event"],
        **names,
    }
    if "exc_info" in event:
        fields["exc_info"] = event["exc_info"]
    return fields


def _render_text(_logger: WrappedLogger, _method: str, fields: EventDict) -> str:
    time, level, logger, message = (fields.pop(name) for name in ("time", "level", "logger", "message"))
    exception = fields.pop("exception", None)
    names = " ".join(f"{name}={value}" for name, value in fields.items())
    line = f"{time} {level} {logger}: {message}" + (f" [{names}]" if names else "")
    return f"{line}\n{exception}" if exception else line
