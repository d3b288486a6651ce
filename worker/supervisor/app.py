"""Puts a supervisor together: settings in, everything wired.

`worker.__main__` calls it in a supervisor's process, tests in their own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from redis import Redis

from jobs.connect import check_server, connect
from jobs.errors import GroupTaken, JobNotFound
from jobs.maintenance import keep_removing, keep_sweeping
from jobs.queue import TicketQueue
from jobs.registration import GroupRegistration
from jobs.storage.base import open_storage
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from jobs.tracing import open_tracing
from worker.settings import WorkerSettings, group_environment
from worker.stages import Stages
from worker.supervisor.checkpoints import CheckpointUploader
from worker.supervisor.consumer import Consumer
from worker.supervisor.disk_space import DiskSpace
from worker.supervisor.events import DrainRequested, GroupMessage, Inbox, JobClosed, JobFetched, StopRequested
from worker.supervisor.fetch import InputFetcher
from worker.supervisor.finalize import Finalizer, Places
from worker.supervisor.gpu_group import GpuGroup, GroupLimits
from worker.supervisor.group_process import Launch
from worker.supervisor.job import ClaimedJob, Completed
from worker.supervisor.lease_renewer import LeaseRenewer
from worker.supervisor.registration import Heartbeat, keep_spool_clear
from worker.supervisor.retry import retry_while_unavailable
from worker.supervisor.spool import Spool
from worker.supervisor.supervisor import Components, Supervisor, SupervisorLimits
from worker.supervisor.tracing import spans_of

REDIS_PATIENCE_S = 2.0  # of one call; whoever calls tries again
SEAT_TTL_S = 6.0


def build_supervisor(settings: WorkerSettings, index: int) -> Supervisor:
    """The supervisor of the group with this index, ready to serve.

    Raises UnfitServer, and GroupTaken if another worker has the group's name and does not go away.
    """
    redis = connect(settings.redis_url, REDIS_PATIENCE_S)
    retry_while_unavailable(lambda: check_server(redis))
    group = settings.group_name(index)
    seat = GroupRegistration(redis, group, SEAT_TTL_S)
    _take(seat, settings.ranks_per_group)
    folder = settings.group_folder(index)
    places = _places(settings, redis, Spool(folder / "jobs"))
    inbox: Inbox = queue.SimpleQueue()
    keeper = LeaseRenewer(
        places.job_store, lambda held: inbox.put(StopRequested(held)), settings.preempt_after_s
    )
    preparation = InputFetcher(places.storage, places.spool)
    tracing = open_tracing("longcat-worker", wanted=settings.traces)

    def took(claim: Lease) -> None:
        held = ClaimedJob(claim, places.spool.path(claim.job.id), stages=Stages(spans_of(claim, tracing)))
        keeper.keep(held)
        inbox.put(JobFetched(held, preparation.prepare(held)))

    crew = Components(
        life=_life(settings, index, inbox),
        intake=Consumer(redis, lambda: places.job_store.holder.claim(group, settings.lease_s), took),
        preparation=preparation,
        keeper=keeper,
        closer=Finalizer(places, settings.upload_limit_s, lambda held: inbox.put(JobClosed(held))),
        presence=Heartbeat(seat, redis, settings.ranks_per_group, lambda: inbox.put(DrainRequested())),
        saves=places.saves,
        room=DiskSpace(settings.disks, settings.min_free_bytes),
        ended=threading.Event(),
    )
    _take_up_films(places, keeper, inbox, settings.lease_s)
    _sweep(places, keeper, crew.ended)
    _start("room", crew.room.keep_looking, crew.ended)
    return Supervisor(crew, inbox, SupervisorLimits(settings.max_films_behind, settings.drain_s))


def _take(seat: GroupRegistration, ranks: int) -> None:
    """Take the group's name; whoever had it may have died a moment ago."""
    patient_until = time.monotonic() + 2 * SEAT_TTL_S
    while True:
        try:
            return retry_while_unavailable(lambda: seat.heartbeat("starting", ranks))
        except GroupTaken:
            if time.monotonic() > patient_until:
                raise
            time.sleep(1.0)


def _places(settings: WorkerSettings, redis: Redis, spool: Spool) -> Places:
    job_store = JobStore(
        redis,
        retention_s=settings.retention_s,
        max_attempts=settings.max_attempts,
        late_upload_s=settings.late_upload_s,
    )
    storage = open_storage(settings)
    saves = CheckpointUploader(job_store, storage, spool)
    return Places(job_store, TicketQueue(redis), storage, spool, saves)


def _life(settings: WorkerSettings, index: int, inbox: Inbox) -> GpuGroup:
    socket = settings.group_folder(index) / "rank-0.sock"
    launch = Launch(
        num_ranks=settings.ranks_per_group,
        module=settings.rank_module,
        setup=settings.rank_setup(socket).model_dump_json(),
        socket=socket,
        environment=group_environment(settings, index),
    )
    patience = GroupLimits(
        start_limit_s=settings.start_limit_s,
        stall_s=settings.stall_s,
        step_stall_s=settings.step_stall_s,
        max_failed_starts=settings.max_failed_starts,
        longest_pause_s=settings.longest_pause_s,
    )
    return GpuGroup(launch, patience, lambda group, message: inbox.put(GroupMessage(group, message)))


def _take_up_films(places: Places, keeper: LeaseRenewer, inbox: Inbox, lease_s: float) -> None:
    """Go on storing films that lie in the spool, where the lease of their claim still holds."""
    for job_id in places.spool.job_ids:
        waiting = places.spool.waiting(job_id)
        if waiting is None:
            continue
        try:
            job = retry_while_unavailable(partial(places.job_store.client.get, job_id))
        except JobNotFound:
            continue
        held = ClaimedJob(
            Lease(job, waiting.fence, lease_s), places.spool.path(job_id), timings_s=waiting.timings_s
        )
        held.verdict = retry_while_unavailable(partial(places.job_store.holder.renew_lease, held.claim))
        if held.verdict != "lease_lost":
            keeper.keep(held)
            inbox.put(JobFetched(held, Completed(waiting.film)))


def _sweep(places: Places, keeper: LeaseRenewer, stop: threading.Event) -> None:
    """What every process does for all, and what is this one's alone."""
    for name, body, arguments in (
        ("sweep", keep_sweeping, (places.job_store, places.tickets, stop)),
        ("remove", keep_removing, (places.job_store, places.storage, stop)),
        ("spool", keep_spool_clear, (places.spool, places.job_store, keeper, stop)),
    ):
        _start(name, body, *arguments)


def _start(name: str, body: Callable[..., object], *arguments: object) -> None:
    threading.Thread(target=body, args=arguments, name=name, daemon=True).start()
