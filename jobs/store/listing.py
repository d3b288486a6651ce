"""List jobs a page at a time, with filters. How much a page reads does not grow with the number of jobs.

Jobs are listed in the order of their submission, from an index of their numbers. A page begins behind a
cursor, so jobs that are submitted, deleted or filtered out meanwhile shift no page. Status or batch, owner
and time of submission are looked up in indexes. Task and text are not: a page looks at `MAX_LOOKED_AT` jobs
for them at most, so it may have fewer jobs than fit, or none, although more follow.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import NamedTuple, Self
from unicodedata import normalize

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from jobs.errors import JobNotFound, UnreadableRecord
from jobs.record import Job, Status
from jobs.store.scripts import decoded, text
from model.spec.params import Task

MAX_LOOKED_AT = 1000
_CHUNK = 200
_MAX_UNDATED = 10  # in a row, among the records that a search by time comes upon
_PARTS = re.compile(r"\S{200}|.{1,200}(?!\S)|\s", re.DOTALL)  # whole words, unless they are longer
_CURSOR = re.compile(r"([0-9]{1,15})\.(.+)")


@dataclass(frozen=True)
class JobFilter:
    """Conditions on jobs; None is no condition.

    Attributes:
        statuses: one of which the jobs have; none is no condition.
        created_after: the earliest time of submission.
        created_before: the time before which jobs were submitted.
        batch: the id of their batch.
        text: part of one of the prompts, in upper or lower case.
    """

    statuses: tuple[Status, ...] = ()
    task: Task | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    batch: str | None = None
    text: str | None = None

    @property
    def indexes(self) -> tuple[str, ...]:
        """Return the smallest indexes that together have all wanted jobs. No job is in two of them."""
        return (f"batch:{self.batch}",) if self.batch else tuple(dict.fromkeys(self.statuses)) or ("all",)

    def checks(self) -> dict[str, Callable[[str], bool]]:
        """Return the conditions that not every job in these indexes meets, by field of the record."""
        checks: dict[str, Callable[[str], bool]] = {}
        if self.task:
            checks["task"] = self.task.__eq__
        if self.batch and self.statuses:
            checks["status"] = self.statuses.__contains__
        if self.text:
            checks["order"] = partial(_has_text, _comparable(self.text))
        return checks


@dataclass(frozen=True)
class Cursor:
    """The place of a job in the list. It stays valid after the job is gone if the time is known."""

    job_id: str
    created_ms: int | None = None

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """Read a cursor, or the id of a job."""
        match = _CURSOR.fullmatch(cursor)
        return cls(match[2], int(match[1])) if match else cls(cursor)

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the place of a job."""
        return cls(job.id, round(job.created_at.timestamp() * 1000))

    def __str__(self) -> str:
        return self.job_id if self.created_ms is None else f"{self.created_ms}.{self.job_id}"


class RecordPage(NamedTuple):
    """Records of jobs, the newest first.

    Attributes:
        older, newer: cursors of those before and after them; None where there are none.
        total: the number of jobs on all pages, None if the indexes do not tell, as for a task or a text. Jobs
            whose records have expired or cannot be read may be counted.
    """

    jobs: list[Job]
    older: Cursor | None
    newer: Cursor | None
    total: int | None


class Walk(NamedTuple):
    """The jobs that were found on a walk, and where it stopped; None if it came to the end of the list."""

    jobs: list[Job]
    stopped_at: Cursor | None


class JobIndexes:
    """The indexes of all jobs, or of those of one owner.

    Args:
        redis: has the indexes and the records.
        owner: the owner whose jobs are listed; None lists those of all.
        read: reads the record of a job. Raises UnreadableRecord.
    """

    def __init__(self, redis: Redis, owner: str | None, read: Callable[[dict[str, str]], Job]) -> None:
        self._redis = redis
        self._owner = owner
        self._read = read
        self._first_by_time: dict[int, int] = {}

    def page(
        self, wanted: JobFilter, limit: int, after: Cursor | None = None, before: Cursor | None = None
    ) -> RecordPage:
        """Return the jobs that are next older than `after`, or next newer than `before`; else the newest.

        Raises JobNotFound if the job of a cursor without a time is gone.
        """
        total = self._count(wanted)
        if before is not None:
            jobs, newer = self.walk(wanted, limit, before, newest_first=False)
            jobs.reverse()
            return RecordPage(jobs, Cursor.of(jobs[-1]) if jobs else None, newer, total)
        jobs, older = self.walk(wanted, limit, after, newest_first=True)
        if after is None:
            return RecordPage(jobs, older, None, total)
        first = Cursor.of(jobs[0]) if jobs else after
        found, stopped_at = self.walk(wanted, 1, first, newest_first=False)
        return RecordPage(jobs, older, first if found or stopped_at else None, total)

    def _count(self, wanted: JobFilter) -> int | None:
        if wanted.checks():
            return None
        first, end = self._range(wanted, None, newest_first=True)
        return sum(int(self._redis.zcount(key, *_scores(first, end))) for key in self._keys(wanted))

    def walk(self, wanted: JobFilter, limit: int, start: Cursor | None, *, newest_first: bool) -> Walk:
        """Return up to `limit` jobs behind a cursor. Records that cannot be read are passed over.

        One job more than that is looked for, to know whether any follow.
        """
        keys = self._keys(wanted)
        first, end = self._range(wanted, start, newest_first=newest_first)
        checks = wanted.checks()
        found: list[Job] = []
        num_looked_at, last = 0, start
        while len(found) <= limit and num_looked_at < MAX_LOOKED_AT:
            num_wanted = _CHUNK if checks else limit + 1 - len(found)
            members = self._members(keys, first, end, num_wanted, newest_first=newest_first)
            if not members:
                return Walk(found, None)
            num_looked_at += len(members)
            job_ids = [job_id for job_id, _ in members]
            if checks:
                job_ids = self._checked(checks, job_ids)
            found += self._readable(keys, job_ids)
            last_id, number = members[-1]
            first, end = (first, number) if newest_first else (number + 1, end)
            last = Cursor.of(found[-1]) if found and found[-1].id == last_id else self._cursor(last_id, last)
        if len(found) > limit:
            return Walk(found[:limit], Cursor.of(found[limit - 1]))
        return Walk(found, last)

    def _range(self, wanted: JobFilter, start: Cursor | None, *, newest_first: bool) -> tuple[int, float]:
        """Return the first number that is wanted and the number before which the wanted ones end."""
        first, end = 0, math.inf
        if wanted.created_after:
            first = self._first_since(_ms(wanted.created_after))
        if wanted.created_before:
            end = self._first_since(_ms(wanted.created_before))
        if start is not None:
            number = self._redis.zscore(self._key("all"), start.job_id)
            if number is None and start.created_ms is None:
                raise JobNotFound("no such job")
            if newest_first:
                last = int(number) if number is not None else self._first_since((start.created_ms or 0) + 1)
                end = min(end, last)
            else:
                next_one = int(number) + 1 if number is not None else self._first_since(start.created_ms or 0)
                first = max(first, next_one)
        return first, end

    def _first_since(self, time_ms: int) -> int:
        """Return the lowest number of a job that was submitted at this time or later."""
        if time_ms not in self._first_by_time:
            self._first_by_time[time_ms] = self._search_first_since(time_ms)
        return self._first_by_time[time_ms]

    def _search_first_since(self, time_ms: int) -> int:
        """Find it by binary search."""
        newest = self._members([self._key("all")], 0, math.inf, 1, newest_first=True)
        low, high = 0, newest[0][1] + 1 if newest else 0
        while low < high:
            middle = (low + high) // 2
            dated = self._next_dated(middle, high)
            if dated is None or dated[1] >= time_ms:
                high = middle
            else:
                low = dated[0] + 1
        return low

    def _next_dated(self, first: int, end: int) -> tuple[int, int] | None:
        """Return number and time of the first job in a range whose time can be read, if it is among a few."""
        index = self._key("all")
        for job_id, number in self._members([index], first, end, _MAX_UNDATED, newest_first=False):
            created_ms = self._created_ms(job_id)
            if created_ms is not None:
                return number, created_ms
        return None

    def _created_ms(self, job_id: str) -> int | None:
        try:
            return int(text(self._redis.hget(record_key(job_id), "created_ms")))
        except (ResponseError, ValueError):  # the record is gone, or broken
            return None

    def _cursor(self, job_id: str, previous: Cursor | None) -> Cursor:
        """Return the place of a job. If its time is unknown, that of the job before is used."""
        created_ms = self._created_ms(job_id)
        if created_ms is None:
            return Cursor(job_id, previous.created_ms if previous else None)
        return Cursor(job_id, created_ms)

    def _checked(self, checks: Mapping[str, Callable[[str], bool]], job_ids: Sequence[str]) -> list[str]:
        """Return the jobs whose records pass the checks of their fields."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(record_key(job_id), list(checks))
            records = pipeline.execute(raise_on_error=False)
        return [
            job_id
            for job_id, stored in zip(job_ids, records, strict=True)
            if isinstance(stored, list)
            and all(passes(text(value)) for passes, value in zip(checks.values(), stored, strict=True))
        ]

    def _members(
        self, keys: Sequence[str], first: int, end: float, limit: int, *, newest_first: bool
    ) -> list[tuple[str, int]]:
        """Return ids and numbers from indexes in the order of numbers, those from `first` to before `end`."""
        lowest, highest = _scores(first, end)
        with self._redis.pipeline(transaction=len(keys) > 1) as pipeline:  # a job may move to another index
            for key in keys:
                if newest_first:
                    pipeline.zrevrangebyscore(key, highest, lowest, 0, limit, withscores=True)
                else:
                    pipeline.zrangebyscore(key, lowest, highest, 0, limit, withscores=True)
            replies = pipeline.execute()
        members = [(text(job_id), int(number)) for reply in replies for job_id, number in reply]
        return sorted(members, key=itemgetter(1), reverse=newest_first)[:limit]

    def _readable(self, keys: Sequence[str], job_ids: Sequence[str]) -> Iterator[Job]:
        """Read jobs, passing over those that cannot be read. Those that are gone leave the indexes."""
        records = read_records(self._redis, job_ids)
        for job_id in job_ids:
            if job_id not in records:
                for key in keys:
                    self._redis.zrem(key, job_id)
                continue
            with suppress(UnreadableRecord):
                yield self._read(records[job_id])

    def _keys(self, wanted: JobFilter) -> list[str]:
        return [self._key(index) for index in wanted.indexes]

    def _key(self, index: str) -> str:
        """Return the key of an index: `all`, a status, or a batch."""
        key = f"longcat:index:{index}"
        return key if self._owner is None else f"{key}:{self._owner}"


def _scores(first: int, end: float) -> tuple[str, str]:
    """Return the range of the numbers from `first` to before `end`, as Redis writes it."""
    return str(first), "+inf" if end == math.inf else f"({end:.0f}"


def record_key(job_id: str) -> str:
    """Return the key of a job's record."""
    return f"longcat:job:{job_id}"


def read_records(redis: Redis, job_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the records of jobs by id, in one round trip. Those that are gone, or no hash, are left out."""
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hgetall(record_key(job_id))
        replies = pipeline.execute(raise_on_error=False)
    records: dict[str, dict[str, str]] = {}
    for job_id, reply in zip(job_ids, replies, strict=True):
        if isinstance(reply, RedisError):
            if not str(reply).startswith("WRONGTYPE"):
                raise reply
        elif reply:
            records[job_id] = decoded(reply.items())
    return records


def _has_text(wanted: str, order: str) -> bool:
    """Check that a text is part of a prompt of a stored order. An order that cannot be read has none."""
    try:
        return any(wanted in _comparable(prompt) for prompt in json.loads(order)["prompts"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def _comparable(text: str) -> str:
    """Return a text without case, and each accented letter as one character where there is one.

    The time to order marks in a row grows with the square of their number, so long words are cut.
    """
    return "".join(normalize("NFC", part) for part in _PARTS.findall(text.casefold()))


def _ms(time: datetime) -> int:
    """Return a time in milliseconds since 1970, rounded up: records have no smaller unit."""
    return math.ceil(time.timestamp() * 1000)
