"""Build the supervisors of a worker process from the settings."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from redis import Redis

from jobs.connect import connect
from jobs.errors import GroupTaken, JobNotFound, UnreadableRecord
from jobs.maintenance import keep_removing, keep_sweeping
from jobs.queue import TicketQueue
from jobs.registration import GroupRegistration
from jobs.storage.base import open_storage
from jobs.store.holder import Lease
from jobs.store.job_store import JobStore
from jobs.store.keys_version import check_redis
from jobs.store.metrics import report_unreadable
from jobs.store.scripts import Replication
from jobs.tracing import open_tracing
from worker.health import JointReports, ReportedState
from worker.messages import Message
from worker.settings import WorkerSettings, group_environment
from worker.supervisor.allocation import SLOTS_PER_RANK
from worker.supervisor.checkpoints import CheckpointUploader
from worker.supervisor.consumer import Consumer
from worker.supervisor.disk_space import DiskSpace
from worker.supervisor.events import (
    DrainRequested,
    GroupMessage,
    Inbox,
    JobClaimed,
    JobFetched,
    JobFinalized,
    StopRequested,
)
from worker.supervisor.fetch import InputFetcher
from worker.supervisor.finalize import Finalizer
from worker.supervisor.gpu_group import GpuGroup, Group, GroupLimits
from worker.supervisor.gpu_world import GpuWorld, StartRanks
from worker.supervisor.group_process import GroupProcess, Launch, OnMessage
from worker.supervisor.heartbeat import Heartbeat
from worker.supervisor.job import ClaimedJob, Completed
from worker.supervisor.lease_renewer import LeaseRenewer
from worker.supervisor.retry import retry_while_unavailable
from worker.supervisor.spool import Spool, adopt, keep_clean, lock_group_folder
from worker.supervisor.supervisor import Components, Supervisor, SupervisorLimits
from worker.supervisor.threads import StoppableThread
from worker.supervisor.timeline import JobTimeline
from worker.supervisor.tracing import spans_of

REDIS_DEADLINE_S = 2.0  # of one command; callers repeat it themselves
REGISTRATION_TTL_S = 6.0


def build_supervisors(
    settings: WorkerSettings,
    index: int,
    report_health: Callable[[ReportedState], None],
    weight_memory: int | None = None,
) -> list[Supervisor]:
    """Return the supervisors of one process: one for the group with this index, or all those of a world.

    No thread runs before `serve`. The supervisors call `report_health` each time that they have handled an
    event. `weight_memory` is the open file in which the ranks of all groups share weights.

    Raises UnfitServer, and GroupTaken if another worker has the name of a group and does not give it up.
    """
    start = partial(_start_ranks, settings, index, weight_memory, report=_message_reporter(settings))
    limits = _limits(settings)
    if not settings.is_elastic:
        return [_build_supervisor(settings, index, partial(_gpu_group, start, limits), report_health)]
    world = GpuWorld(start, limits, settings.ranks)
    num_slots = SLOTS_PER_RANK * settings.ranks
    reports = JointReports(num_slots, report_health)
    return [
        _build_supervisor(settings, slot, world.add_slot, partial(reports.report, slot))
        for slot in range(num_slots)
    ]


def serve_together(supervisors: Sequence[Supervisor]) -> None:
    """Serve with all supervisors, each in a thread but the first, until all are drained.

    They share their ranks, so if one of them ends, the others drain. A thread lives until all have ended,
    because the processes of the ranks die with the thread that started them.
    """
    all_ended = threading.Barrier(len(supervisors))

    def serve(supervisor: Supervisor) -> None:
        try:
            supervisor.serve()
        finally:
            for each in supervisors:
                each.request_drain()
            all_ended.wait()

    first, *others = supervisors
    threads = [threading.Thread(target=serve, args=(each,), name="supervisor") for each in others]
    for thread in threads:
        thread.start()
    try:
        serve(first)
    finally:
        for thread in threads:
            thread.join()


def _build_supervisor(
    settings: WorkerSettings,
    index: int,
    new_group: Callable[[Inbox], Group],
    report_health: Callable[[ReportedState], None],
) -> Supervisor:
    """Return the supervisor with this index.

    `new_group` returns its GPU group, whose messages come to the inbox. From `num_groups` on, an `index` is
    that of a spare slot of a world: its supervisor is not registered, does not sweep, and claims in the name
    of a registered group, so that predictions count its jobs.
    """
    redis = connect(settings.redis_address, REDIS_DEADLINE_S)
    retry_while_unavailable(lambda: check_redis(redis, settings.redis_wait_replicas))
    group = settings.group_name(index % settings.num_groups)
    is_registered = index < settings.num_groups
    registration = GroupRegistration(redis, group, REGISTRATION_TTL_S)
    if is_registered:
        _register(registration, settings.ranks_per_group)

    inbox: Inbox = queue.SimpleQueue()
    spool = _open_spool(settings, redis, index)
    job_store = _open_job_store(settings, redis)
    storage, tickets = open_storage(settings), TicketQueue(redis)
    gpu_group = new_group(inbox)
    lease_renewer = LeaseRenewer(
        job_store, lambda job: inbox.put(StopRequested(job)), settings.preempt_after_s
    )
    disk_space = DiskSpace(settings.disks, settings.min_free_bytes, spool.check_writable)
    report_checkpoint = partial(report_unreadable, redis, "checkpoint")
    fetcher = InputFetcher(job_store, storage, spool, disk_space, report_checkpoint)
    checkpoints = CheckpointUploader(job_store, storage, spool)
    finalizer = Finalizer(
        job_store=job_store,
        tickets=tickets,
        storage=storage,
        spool=spool,
        checkpoints=checkpoints,
        upload_limit_s=settings.upload_limit_s,
        on_finalized=lambda job: inbox.put(JobFinalized(job)),
    )
    tracing = open_tracing("longcat-worker", wanted=settings.traces)

    def claim() -> Lease | None:
        return job_store.holder.claim(group, settings.lease_s, gpu_group.capability)

    def on_claim(lease: Lease) -> None:
        timeline = JobTimeline(spans_of(lease, tracing))
        job = ClaimedJob(lease, spool.job_folder(lease.job.id), timeline=timeline)
        lease_renewer.add(job)
        inbox.put(JobClaimed(job))
        inbox.put(JobFetched(job, fetcher.fetch(job)))

    consumer = Consumer(
        redis, claim, on_claim, lambda: job_store.holder.requirements(gpu_group.capability) or ()
    )
    heartbeat = Heartbeat(registration, redis, settings.ranks_per_group, lambda: inbox.put(DrainRequested()))
    sweeps = (
        StoppableThread("sweep", partial(keep_sweeping, job_store, tickets)),
        StoppableThread("remove-files", partial(keep_removing, job_store, storage)),
    )
    components = Components(
        gpu_group=gpu_group,
        consumer=consumer,
        fetcher=fetcher,
        lease_renewer=lease_renewer,
        finalizer=finalizer,
        checkpoints=checkpoints,
        heartbeat=heartbeat if is_registered else None,
        disk_space=disk_space,
        report_health=report_health,
        maintenance=(
            StoppableThread("spool", partial(keep_clean, spool, job_store, lease_renewer.holds)),
            *(sweeps if is_registered else ()),
        ),
    )
    _resume_uploads(job_store, spool, lease_renewer, inbox, settings.lease_s)
    return Supervisor(components, inbox, SupervisorLimits(settings.max_claimed_jobs, settings.drain_s))


def _register(registration: GroupRegistration, ranks: int) -> None:
    """Take the group's name. A worker that had it may have died a moment ago, so wait until it expires."""
    deadline = time.monotonic() + 2 * REGISTRATION_TTL_S
    while True:
        try:
            return retry_while_unavailable(lambda: registration.heartbeat("starting", ranks))
        except GroupTaken:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def _open_spool(settings: WorkerSettings, redis: Redis, index: int) -> Spool:
    """Return the spool of a group, and keep its folder from being adopted.

    The first group adopts the files of groups that this worker does not have any more.
    """
    folder = settings.group_folder(index)
    spool = Spool(folder / "jobs", partial(report_unreadable, redis, "spool file"))
    lock_group_folder(folder)
    if index == 0:
        num_folders = SLOTS_PER_RANK * settings.ranks if settings.is_elastic else settings.num_groups
        for former in settings.former_group_folders(num_folders):
            adopt(former, spool)
    return spool


def _open_job_store(settings: WorkerSettings, redis: Redis) -> JobStore:
    return JobStore(
        redis,
        retention_s=settings.retention_s,
        max_attempts=settings.max_attempts,
        late_upload_s=settings.late_upload_s,
        replication=Replication(settings.redis_wait_replicas, REDIS_DEADLINE_S / 2),
    )


def _gpu_group(start: StartRanks, limits: GroupLimits, inbox: Inbox) -> GpuGroup:
    """Return a fixed group, whose messages come to the inbox of its supervisor."""

    def on_message(process: GroupProcess, message: Message | None, _: int) -> None:
        inbox.put(GroupMessage(process, message))

    return GpuGroup(partial(start, on_message), limits)


def _start_ranks(
    settings: WorkerSettings,
    index: int,
    weight_memory: int | None,
    on_message: OnMessage,
    report: Callable[[UnreadableRecord], None],
) -> GroupProcess:
    """Start the ranks of a group, or all those of a world. Raises OSError."""
    socket = settings.group_folder(index) / "rank-0.sock"
    launch = Launch(
        num_ranks=settings.local_ranks_per_world,
        module=settings.rank_module,
        setup=settings.rank_setup(socket).model_dump_json(),
        socket=socket,
        environment=group_environment(settings, index),
        weight_memory=weight_memory,
        num_connections=settings.ranks if settings.is_elastic else 1,
    )
    return GroupProcess(launch, on_message, report)


def _message_reporter(settings: WorkerSettings) -> Callable[[UnreadableRecord], None]:
    """Return what counts messages of ranks that this release cannot read."""
    return partial(report_unreadable, connect(settings.redis_address, REDIS_DEADLINE_S), "message")


def _limits(settings: WorkerSettings) -> GroupLimits:
    return GroupLimits(
        start_limit_s=settings.start_limit_s,
        stall_s=settings.stall_s,
        step_stall_s=settings.step_stall_s,
        max_failed_starts=settings.max_failed_starts,
        longest_pause_s=settings.longest_pause_s,
    )


def _resume_uploads(
    job_store: JobStore, spool: Spool, lease_renewer: LeaseRenewer, inbox: Inbox, lease_s: float
) -> None:
    """Claim the jobs whose videos an earlier supervisor left in the spool, to upload them.

    The finalizer uploads those whose leases still hold.
    """
    for job_id in spool.job_ids:
        pending = spool.pending_upload(job_id)
        if pending is None:
            continue
        try:
            record = retry_while_unavailable(partial(job_store.client.get, job_id))
        except (JobNotFound, UnreadableRecord):  # a video stays in the spool until its job has ended
            continue
        lease = Lease(record, pending.fence, lease_s)
        job = ClaimedJob(lease, spool.job_folder(job_id), timings_s=pending.timings_s)
        job.stop_request = retry_while_unavailable(partial(job_store.holder.renew_lease, lease))
        lease_renewer.add(job)
        inbox.put(JobClaimed(job))
        inbox.put(JobFetched(job, Completed(pending.video)))
