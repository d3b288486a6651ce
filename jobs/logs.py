"""Log lines, as text or as JSON, with the names of what they are about: request, job and trace.

Every process sets its log up with `set_up_log`; what is within `about` carries those names, from the request
that ordered a job to the ranks that run it. It knows nothing of where lines are collected.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from jobs.record import Job

LogFormat = Literal["text", "json"]
Names = Mapping[str, str]

_NAMES: ContextVar[Names] = ContextVar("names")


def set_up_log(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Write all lines of this process to its standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)


@contextmanager
def about(names: Names) -> Iterator[None]:
    """Lines of this thread or task, and of what it starts with a copy of its context, carry these names."""
    token = _NAMES.set({**current_names(), **names})
    try:
        yield
    finally:
        _NAMES.reset(token)


def current_names() -> Names:
    """What lines carry here."""
    return _NAMES.get({})


def names_of(job: Job) -> dict[str, str]:
    """What lines about a job carry; `traceparent` is W3C's."""
    names = {"job_id": job.id, "request_id": job.request_id, "traceparent": job.traceparent}
    return {name: value for name, value in names.items() if value}


class _TextLines(logging.Formatter):
    """For people: the names come last."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        names = " ".join(f"{name}={value}" for name, value in _shown().items())
        line = super().formatMessage(record)
        return f"{line} [{names}]" if names else line


class _JsonLines(logging.Formatter):
    """For programs: one object for each line, times in RFC 3339."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_shown(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _shown() -> dict[str, str]:
    names = dict(current_names())
    if traceparent := names.pop("traceparent", None):
        names["trace_id"] = traceparent.split("-")[1]
    return names
