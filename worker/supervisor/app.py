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
from worker.supervisor.finalize import Backends, Finalizer
from worker.supervisor.gpu_group import GpuGroup, Group, GroupLimits
from worker.supervisor.gpu_world import GpuWorld
from worker.supervisor.group_process import GroupProcess, Launch
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

    They call `report_health` each time that they have handled an event. `weight_memory` is the open file in
    which the ranks of all groups share weights.

    Raises UnfitServer, and GroupTaken if another worker has the name of a group and does not give it up.
    """
    if not settings.is_elastic:
        return [build_supervisor(settings, index, report_health, weight_memory)]
    world = _build_world(settings, weight_memory)
    num_slots = SLOTS_PER_RANK * settings.ranks
    reports = JointReports(num_slots, report_health)
    return [
        build_supervisor(settings, slot, partial(reports.report, slot), add_slot=world.add_slot)
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


def build_supervisor(
    settings: WorkerSettings,
    index: int,
    report_health: Callable[[ReportedState], None] = lambda _: None,
    weight_memory: int | None = None,
    add_slot: Callable[[Inbox], Group] | None = None,
) -> Supervisor:
    """Return the supervisor of the group with this index; `serve` starts its threads.

    The supervisor calls `report_health` each time that it has handled an event. `weight_memory` is the open
    file in which the ranks of all groups share weights. `add_slot` returns its part of a world; without
    it, the supervisor has a GPU group of its own. From `num_groups` on, an `index` is that of a spare slot:
    its supervisor is not registered, does not sweep, and claims in the name of a registered group, so that
    predictions count its jobs.

    Raises UnfitServer, and GroupTaken if another worker has the group's name and does not give it up.
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
    backends = _build_backends(settings, redis, spool)
    job_store = backends.job_store
    lease_renewer = LeaseRenewer(
        job_store, lambda job: inbox.put(StopRequested(job)), settings.preempt_after_s
    )
    disk_space = DiskSpace(settings.disks, settings.min_free_bytes, spool.check_writable)
    fetcher = InputFetcher(
        job_store, backends.storage, spool, disk_space, partial(report_unreadable, redis, "checkpoint")
    )
    gpu_group: Group
    if add_slot:
        gpu_group = add_slot(inbox)
    else:
        launch = _launch(settings, index, settings.local_ranks_per_group, weight_memory)
        gpu_group = _build_gpu_group(settings, launch, inbox, partial(report_unreadable, redis, "message"))
    tracing = open_tracing("longcat-worker", wanted=settings.traces)

    def on_claim(lease: Lease) -> None:
        timeline = JobTimeline(spans_of(lease, tracing))
        job = ClaimedJob(lease, spool.job_folder(lease.job.id), timeline=timeline)
        lease_renewer.add(job)
        inbox.put(JobClaimed(job))
        inbox.put(JobFetched(job, fetcher.fetch(job)))

    def claim() -> Lease | None:
        return job_store.holder.claim(group, settings.lease_s, gpu_group.capability)

    sweeps = (
        StoppableThread("sweep", partial(keep_sweeping, job_store, backends.tickets)),
        StoppableThread("remove-files", partial(keep_removing, job_store, backends.storage)),
    )
    components = Components(
        gpu_group=gpu_group,
        consumer=Consumer(
            redis, claim, on_claim, lambda: job_store.holder.requirements(gpu_group.capability) or ()
        ),
        fetcher=fetcher,
        lease_renewer=lease_renewer,
        finalizer=Finalizer(backends, settings.upload_limit_s, lambda job: inbox.put(JobFinalized(job))),
        checkpoints=backends.checkpoints,
        heartbeat=Heartbeat(
            registration, redis, settings.ranks_per_group, lambda: inbox.put(DrainRequested())
        )
        if is_registered
        else None,
        disk_space=disk_space,
        report_health=report_health,
        maintenance=(
            StoppableThread("spool", partial(keep_clean, spool, job_store, lease_renewer.holds)),
            *(sweeps if is_registered else ()),
        ),
    )
    _resume_uploads(backends, lease_renewer, inbox, settings.lease_s)
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


def _build_backends(settings: WorkerSettings, redis: Redis, spool: Spool) -> Backends:
    job_store = JobStore(
        redis,
        retention_s=settings.retention_s,
        max_attempts=settings.max_attempts,
        late_upload_s=settings.late_upload_s,
        replication=Replication(settings.redis_wait_replicas, REDIS_DEADLINE_S / 2),
    )
    storage = open_storage(settings)
    checkpoints = CheckpointUploader(job_store, storage, spool)
    return Backends(job_store, TicketQueue(redis), storage, spool, checkpoints)


def _build_gpu_group(
    settings: WorkerSettings, launch: Launch, inbox: Inbox, report: Callable[[UnreadableRecord], None]
) -> GpuGroup:
    def on_message(process: GroupProcess, message: Message | None, _: int) -> None:
        inbox.put(GroupMessage(process, message))

    return GpuGroup(lambda: GroupProcess(launch, on_message, report), _limits(settings))


def _build_world(settings: WorkerSettings, weight_memory: int | None) -> GpuWorld:
    redis = connect(settings.redis_address, REDIS_DEADLINE_S)
    report = partial(report_unreadable, redis, "message")
    launch = _launch(settings, 0, settings.ranks, weight_memory, num_connections=settings.ranks)
    return GpuWorld(
        lambda on_message: GroupProcess(launch, on_message, report), _limits(settings), settings.ranks
    )


def _launch(
    settings: WorkerSettings, index: int, num_ranks: int, weight_memory: int | None, num_connections: int = 1
) -> Launch:
    socket = settings.group_folder(index) / "rank-0.sock"
    return Launch(
        num_ranks=num_ranks,
        module=settings.rank_module,
        setup=settings.rank_setup(socket).model_dump_json(),
        socket=socket,
        environment=group_environment(settings, index),
        weight_memory=weight_memory,
        num_connections=num_connections,
    )


def _limits(settings: WorkerSettings) -> GroupLimits:
    return GroupLimits(
        start_limit_s=settings.start_limit_s,
        stall_s=settings.stall_s,
        step_stall_s=settings.step_stall_s,
        max_failed_starts=settings.max_failed_starts,
        longest_pause_s=settings.longest_pause_s,
    )


def _resume_uploads(backends: Backends, lease_renewer: LeaseRenewer, inbox: Inbox, lease_s: float) -> None:
    """Claim the jobs whose videos an earlier supervisor left in the spool, to upload them.

    The finalizer uploads those whose leases still hold.
    """
    for job_id in backends.spool.job_ids:
        pending = backends.spool.pending_upload(job_id)
        if pending is None:
            continue
        try:
            record = retry_while_unavailable(partial(backends.job_store.client.get, job_id))
        except (JobNotFound, UnreadableRecord):  # a video stays in the spool until its job has ended
            continue
        lease = Lease(record, pending.fence, lease_s)
        job = ClaimedJob(lease, backends.spool.job_folder(job_id), timings_s=pending.timings_s)
        job.stop_request = retry_while_unavailable(partial(backends.job_store.holder.renew_lease, lease))
        lease_renewer.add(job)
        inbox.put(JobClaimed(job))
        inbox.put(JobFetched(job, Completed(pending.video)))
