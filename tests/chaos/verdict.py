"""Check the guarantees against what clients, Redis and the storage show after a campaign."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePath
from statistics import median
from typing import cast

import numpy as np

from jobs.errors import JobNotFound
from jobs.record import ENDED
from jobs.record import Job as Record
from jobs.storage.keys import job_of
from jobs.store.metrics import counters
from tests.chaos.campaign import Course, Ordered, PastFault
from tests.chaos.client import Client, Frames, Job, ServerError
from tests.chaos.faults import OUTAGES
from tests.chaos.site import Site
from tests.decoded_video import SAME_VIDEO_DB, psnr
from worker.supervisor.spool import CLEAN_EVERY_S

OUTAGE_ENDS_S = 5.0  # after its recovery, for requests that began before
ROUNDS_S = 120.0  # two rounds of maintenance, on a busy machine


@dataclass
class Recovery:
    """The times to recover from the faults of one kind. `never` counts those without a recovery in time."""

    count: int
    never: int
    median_s: float | None
    worst_s: float | None


@dataclass
class Verdict:
    """The violations of the guarantees, and statistics.

    Attributes:
        lost: jobs that never ended.
        duplicated: jobs that ended twice, or that one request created twice.
        wrong_status: jobs whose status the faults do not explain, or changed after their end.
        wrong_video: jobs whose video differs from the one that was generated without faults.
        orphaned_files: files that should have been removed.
        not_recovered: faults from which the work did not recover in time.
        unexpected_exits: programs that ended although no fault ended them.
        server_errors: answers of 500 or more that no outage explains.
        missing_webhooks: jobs whose end no webhook announced.
        requeues: how often jobs were requeued, by cause.
    """

    accepted: int
    ended: dict[str, int]
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong_status: list[str] = field(default_factory=list)
    wrong_video: list[str] = field(default_factory=list)
    orphaned_files: list[str] = field(default_factory=list)
    orphaned_processes: list[str] = field(default_factory=list)
    not_recovered: list[str] = field(default_factory=list)
    unexpected_exits: list[str] = field(default_factory=list)
    server_errors: list[str] = field(default_factory=list)
    missing_webhooks: list[str] = field(default_factory=list)
    steps_run: int = 0
    steps_needed: int = 0
    recoveries: dict[str, Recovery] = field(default_factory=dict)
    requeues: dict[str, int] = field(default_factory=dict)

    @property
    def violations(self) -> dict[str, list[str]]:
        """Return the violations, by name."""
        names = ["lost", "duplicated", "wrong_status", "wrong_video", "orphaned_files", "orphaned_processes"]
        names += ["not_recovered", "unexpected_exits", "server_errors", "missing_webhooks"]
        return {name: getattr(self, name) for name in names}

    @property
    def is_good(self) -> bool:
        return not any(self.violations.values())

    @property
    def work_repeated(self) -> float:
        """Return the ratio of steps run to steps needed; 1 is best."""
        return self.steps_run / max(1, self.steps_needed)


def judge(course: Course, site: Site, client: Client) -> Verdict:
    """Check all jobs, then delete them and check what remains."""
    orders = course.orders
    videos = [order for order in orders if order.video is not None]
    run, needed = site.steps.work({order.job_id for order in videos})
    verdict = Verdict(
        accepted=len(orders),
        ended=dict(Counter(_label(order.ended) for order in orders)),
        lost=[order.job_id for order in orders if not order.ended],
        wrong_status=[*_wrong_status(course), *_changed(orders, client)],
        wrong_video=[
            order.job_id
            for order in videos
            if _has_wrong_video(order, course, client, is_exact=site.is_exact)
        ],
        not_recovered=[fault.kind for fault in course.faults if fault.recovery_s is None],
        unexpected_exits=list(site.crashed),
        server_errors=unexcused(client.server_errors, course),
        missing_webhooks=list(_missing_webhooks(orders, site)),
        steps_run=run,
        steps_needed=needed,
        recoveries=recoveries(course.faults),
        requeues={label: int(n) for (name, label), n in counters(site.redis).items() if name == "requeues"},
    )
    verdict.orphaned_files = _remains(lambda: _misplaced(site), site)
    verdict.duplicated = sorted({*_ended_twice(orders, site), *_ordered_twice(orders, client)})
    for job in client.jobs():
        client.delete(job["id"])
    verdict.orphaned_files += _remains(lambda: _to_be_removed(site), site)
    return verdict


def unexcused(found: list[ServerError], course: Course) -> list[str]:
    """Return answers of 500 or more, but those of 503 while an outage lasted or before the campaign began."""
    outages = [fault for fault in course.faults if fault.kind in OUTAGES]
    return [
        f"{error.status} {error.what}"
        for error in found
        if error.status != 503
        or (
            error.at > course.began
            and not any(
                outage.at <= error.at and error.sent_at <= outage.over_at + OUTAGE_ENDS_S
                for outage in outages
            )
        )
    ]


def _missing_webhooks(orders: list[Ordered], site: Site) -> Iterator[str]:
    """Yield jobs whose end was neither announced by a webhook nor will be."""
    for order in orders:
        if order.ended and order.video is not None:
            event = order.ended["status"]
            waits = site.redis.exists(f"longcat:delivery:{order.job_id}-{event}")
            if not waits and (f"job.{event}", order.job_id) not in site.receiver.received:
                yield order.job_id


def recoveries(faults: list[PastFault]) -> dict[str, Recovery]:
    """Return the times to recover, by kind of fault."""
    kinds = sorted({fault.kind for fault in faults})
    return {kind: _recovery([fault for fault in faults if fault.kind == kind]) for kind in kinds}


def _recovery(faults: list[PastFault]) -> Recovery:
    times = [fault.recovery_s for fault in faults if fault.recovery_s is not None]
    return Recovery(
        count=len(faults),
        never=len(faults) - len(times),
        median_s=median(times) if times else None,
        worst_s=max(times, default=None),
    )


def _label(job: Job | None) -> str:
    if not job:
        return "lost"
    error = job.get("error")
    return f"{job['status']}: {error['code']}" if error else str(job["status"])


def _wrong_status(course: Course) -> Iterator[str]:
    """Yield the jobs whose final status their faults and cancels do not explain."""
    for order in course.orders:
        if order.ended and not _is_explained(order, course.faults):
            yield f"{order.job_id} {_label(order.ended)}"


def _is_explained(order: Ordered, faults: list[PastFault]) -> bool:
    job = order.ended
    assert job
    if job["status"] == "cancelled":
        return order.cancel is not None
    if order.cancel:
        return False
    if job["status"] == "failed":
        return job["error"]["code"] in order.possible_errors(faults)
    return order.video is not None and job["result"] is not None


def _changed(orders: list[Ordered], client: Client) -> Iterator[str]:
    """Yield the jobs that changed after their end."""
    for order in orders:
        now = client.job(order.job_id) or {}
        if order.ended and any(now.get(name) != order.ended[name] for name in ("status", "finished_at")):
            yield f"{order.job_id} was {_label(order.ended)} and is {_label(now)}"


def _has_wrong_video(order: Ordered, course: Course, client: Client, *, is_exact: bool) -> bool:
    if not order.ended or order.ended["status"] != "succeeded":
        return False
    assert order.video is not None
    return not is_same(client.frames(order.job_id), course.frames[order.video], is_exact=is_exact)


def is_same(frames: Frames, expected: Frames, *, is_exact: bool) -> bool:
    """Return whether frames are the expected ones, to the bit or but for rounding."""
    if is_exact or frames.shape != expected.shape:
        return np.array_equal(frames, expected)
    return psnr(frames, expected) > SAME_VIDEO_DB


def _ended_twice(orders: list[Ordered], site: Site) -> Iterator[str]:
    """Yield the jobs with several final events, or several videos in the storage."""
    for order in orders:
        endings = [
            event.status for event in site.job_store.client.events(order.job_id) if event.status in ENDED
        ]
        videos = [key for key in site.storage.keys(f"jobs/{order.job_id}/") if key.endswith(".mp4")]
        if len(endings) > 1 or len(videos) > 1:
            yield order.job_id


def _ordered_twice(orders: list[Ordered], client: Client) -> Iterator[str]:
    """Return the jobs that exist although no client received their id."""
    known = {order.job_id for order in orders}
    return (job["id"] for job in client.jobs() if "order" in job["metadata"] and job["id"] not in known)


def _misplaced(site: Site) -> Iterator[str]:
    """Yield the files that no job needs, in the storage, on the disks of workers and in upload folders."""
    for job_id, keys in groupby(sorted(site.storage.keys("jobs/")), job_of):
        record = _record(str(job_id), site)
        yield from (key for key in keys if not _is_kept(key, record))
    for worker in site.workers:
        yield from (f"{worker.name}: {job_id}" for job_id in worker.spooled)
    yield from (f"uploads: {folder}" for folder in site.uploads)


def _record(job_id: str, site: Site) -> Record | None:
    try:
        return site.job_store.client.get(job_id)
    except JobNotFound:
        return None


def _is_kept(key: str, record: Record | None) -> bool:
    """Return whether a file is an input of an existing job, or stored beside its result."""
    if record is None:
        return False
    if record.result and PurePath(key).parent == PurePath(record.result.video_key).parent:
        return True
    return key in {file.key for file in record.order.inputs}


def _to_be_removed(site: Site) -> Iterator[str]:
    """Yield the files of deleted jobs, and the file removals that are still scheduled in Redis."""
    yield from site.storage.keys("jobs/")
    for name in ("longcat:file_removals:first", "longcat:file_removals:second"):
        yield from (
            f"{name}: {job_id.decode()}" for job_id in cast(list[bytes], site.redis.zrange(name, 0, -1))
        )


def _remains(look: Callable[[], Iterator[str]], site: Site) -> list[str]:
    """Return what `look` still finds after the time in which everything must have been removed.

    The slowest removal is that of files under a reserved id, which has to expire first.
    """
    until = time.monotonic() + 2 * site.late_upload_s + CLEAN_EVERY_S + ROUNDS_S
    while (found := list(look())) and time.monotonic() < until:
        time.sleep(1.0)
    return sorted(set(found))
