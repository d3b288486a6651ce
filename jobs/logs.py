"""Write log lines as text or JSON, with the request, job and trace that they belong to.

Every process calls `set_up_log` once. Lines inside `about` carry its names, from the request that submitted a
job to the ranks that run it.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from threading import Lock
from typing import Literal

from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars, get_contextvars
from structlog.processors import JSONRenderer, format_exc_info
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, WrappedLogger

from jobs.errors import Unavailable
from jobs.record import Job

_OUTAGE_INTERVAL_S = 30.0

OUTAGE_ENDED = {"outage_ended": True}
"""The `extra` of a line that says that an outage is over, for `OutageFilter`."""

LogFormat = Literal["text", "json"]


def set_up_log(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Write all lines of this process to its standard error."""
    render = JSONRenderer(ensure_ascii=False) if log_format == "json" else _render_text
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(OutageFilter())
    handler.setFormatter(ProcessorFormatter(processors=[_add_fields, format_exc_info, render]))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class OutageFilter(logging.Filter):
    """Leave out lines that an outage of Redis or the storage repeats.

    A line is about an outage if its arguments contain the error. The first line of a text passes, then one in
    each interval, with the number of those that were left out. After a line with `OUTAGE_ENDED`, the first
    lines of the next outage pass at once: the log does not end with "Redis answers again" while it does not.
    """

    def __init__(
        self, interval_s: float = _OUTAGE_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._clock = clock
        self._lock = Lock()
        self._passed: dict[tuple[str, str], tuple[float, int]] = {}  # when, and how many were left out since

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line passes."""
        if hasattr(record, "outage_ended"):
            with self._lock:
                self._passed.clear()
        if not any(isinstance(argument, Unavailable | RedisError) for argument in record.args or ()):
            return True
        now, kind = self._clock(), (record.name, str(record.msg))
        with self._lock:
            passed_at, left_out = self._passed.get(kind, (-math.inf, 0))
            if now - passed_at < self._interval_s:
                self._passed[kind] = (passed_at, left_out + 1)
                return False
            self._passed[kind] = (now, 0)
        if left_out:
            record.msg = f"{record.msg} ({left_out} more since the last such line)"
        return True


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
