"""Read the counters of the job store: the same numbers whichever process is asked, kept over restarts.

The scripts count each change of a job in the step that makes it (`scripts/parts/metrics.lua`). A summary
consists of the two counters `<name>_sum` and `<name>_count`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

from redis import Redis

from jobs.connect import redis_reached
from jobs.errors import Unavailable, UnreadableRecord
from jobs.record import Job
from jobs.store.scripts import decoded

logger = logging.getLogger(__name__)

METRICS_KEY = "longcat:metrics"

UnreadableKind = Literal[
    "job",
    "job field",
    "missing job",
    "event",
    "checkpoint",
    "delivery",
    "attempt",
    "ticket",
    "group status",
    "capability",
    "spool file",
    "message",
    "api key",
    "session",
    "webhook secret",
    "preset",
]
"""The kinds of documents that are passed over when this release cannot read them; labels of the counter."""

Counters = Mapping[tuple[str, str], float]
"""Values by name and label; the label is empty if the counter has none."""


def num_set_aside(redis: Redis) -> int:
    """Return the number of queued jobs that some worker could not read. Raises Unavailable."""
    with redis_reached():
        return int(redis.zcard("longcat:queue:set_aside"))


def counters(redis: Redis) -> Counters:
    """Return all counters. Raises Unavailable."""
    with redis_reached():
        stored = decoded(redis.hgetall(METRICS_KEY).items())
    found: dict[tuple[str, str], float] = {}
    for field, value in stored.items():
        name, _, label = field.partition("|")
        try:
            found[name, label] = float(value)
        except ValueError:
            logger.warning("counter %s is not a number", field)
    return found


def count_group_start(redis: Redis, pool: str, duration_s: float) -> None:
    """Count a start of a group that took this long. Raises Unavailable."""
    with redis_reached():
        pipeline = redis.pipeline()
        pipeline.hincrbyfloat(METRICS_KEY, f"group_start_seconds_sum|{pool}", duration_s)
        pipeline.hincrbyfloat(METRICS_KEY, f"group_start_seconds_count|{pool}", 1)
        pipeline.execute()


def report_unread_fields(redis: Redis, job: Job) -> None:
    """Log and count the fields of a record that this release cannot read, and that have their defaults."""
    for name in job.unread:
        logger.warning("job %s: cannot read %s", job.id, name)
        _count_unreadable(redis, "job field")


def report_unreadable(redis: Redis, kind: UnreadableKind, error: UnreadableRecord) -> None:
    """Log and count a document that is passed over because this release cannot read it."""
    logger.error("passed over a %s: %s", kind, error)
    _count_unreadable(redis, kind)


def _count_unreadable(redis: Redis, kind: UnreadableKind) -> None:
    with suppress(Unavailable), redis_reached():
        redis.hincrbyfloat(METRICS_KEY, f"unreadable_records|{kind}", 1)
