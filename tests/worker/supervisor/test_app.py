"""Supervisors are built from settings. Their GPU group never starts; nothing else needs it."""

from __future__ import annotations

import subprocess
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from jobs.errors import GroupTaken, Unavailable, UnfitServer
from jobs.record import Progress
from jobs.registration import GroupRegistration, live_groups
from jobs.storage.folder import FolderStorage
from jobs.store.metrics import counters
from tests.tickets import num_tickets
from tests.waiting import wait_until
from tests.worker.examples import ORDER
from tests.worker.supervisor.backends import LocalBackends, write_video
from worker.channel import Channel, connect
from worker.messages import GroupFailed
from worker.settings import WorkerSettings
from worker.supervisor import app, spool
from worker.supervisor.app import build_supervisors, serve_together
from worker.supervisor.job import ClaimedJob
from worker.supervisor.spool import PENDING_UPLOAD, PendingUpload, Spool
from worker.supervisor.supervisor import Supervisor


def build_supervisor(settings: WorkerSettings) -> Supervisor:
    """Return the supervisor of the first group."""
    (supervisor,) = build_supervisors(settings, 0, lambda _: None)
    return supervisor


class Scene:
    def __init__(self, backends: LocalBackends, redis_url: str, folder: Path) -> None:
        self.backends = backends
        self.settings = WorkerSettings(
            redis_url=redis_url,
            data_dir=folder / "data",
            checkpoint=folder,
            device="cpu",
            worker_name="w",
            rank_module="no_such_module",
            max_failed_starts=1,
        )
        self.storage = FolderStorage(Path(self.settings.storage_location))
        self.spool = Spool(self.settings.group_folder(0) / "jobs")
        self.supervisor: Supervisor | None = None

    def serve(self) -> None:
        self.supervisor = build_supervisor(self.settings)
        self.thread = threading.Thread(target=self.supervisor.serve)
        self.thread.start()

    def drain(self) -> None:
        if self.supervisor:
            self.supervisor.request_drain()
            self.thread.join(60)
            assert not self.thread.is_alive()

    def finished_job(self, spool: Spool | None = None) -> ClaimedJob:
        """Return a job whose video is in the spool of a dead supervisor."""
        spool = spool or self.spool
        self.backends.submit()
        lease = self.backends.claim("w-0")
        job = ClaimedJob(lease, spool.make_job_folder(lease.job.id))
        pending = PendingUpload(fence=lease.fence, video=write_video(job.folder), timings_s={"decode": 2.0})
        spool.write_pending_upload(job.job_id, pending)
        return job

    def status(self, job: ClaimedJob) -> str:
        return self.backends.job_store.client.get(job.job_id).status


@pytest.fixture
def scene(backends: LocalBackends, redis_server: str, tmp_path: Path):
    scene = Scene(backends, redis_server, tmp_path)
    yield scene
    scene.drain()


def test_video_of_a_job_whose_record_cannot_be_read_stays_in_the_spool(scene):
    unreadable, readable = scene.finished_job(), scene.finished_job()
    scene.backends.redis.hset(f"longcat:job:{unreadable.job_id}", "order", "{}")
    scene.serve()
    wait_until(lambda: scene.status(readable) == "succeeded")
    assert scene.spool.pending_upload(unreadable.job_id)


def test_resumed_upload_continues_the_progress_of_its_job(scene):
    job = scene.finished_job()
    decoded = Progress(phase="decode", segment=1, num_segments=2, fraction=0.98)
    scene.backends.job_store.holder.renew_lease(job.lease, decoded)
    scene.serve()
    wait_until(lambda: scene.status(job) == "succeeded")
    events = scene.backends.job_store.client.events(job.job_id)
    reported = [event.progress for event in events if event.progress]
    assert decoded in reported
    assert {progress.num_segments for progress in reported} == {2}
    assert [progress.fraction for progress in reported] == sorted(progress.fraction for progress in reported)


def test_claimed_job_begins_with_the_segments_of_its_order(backends):
    plan = ORDER.plan.model_copy(update={"task": "long_video", "num_segments": 3})
    backends.submit(ORDER.model_copy(update={"plan": plan}))
    assert backends.claimed_job(backends.claim()).progress == Progress(phase="load", num_segments=3)


def test_worker_does_not_start_on_keys_of_a_much_later_release(scene):
    scene.backends.redis.hset("longcat:keys_version", mapping={"version": 99, "oldest_reader": 98})
    with pytest.raises(UnfitServer, match="a later release"):
        build_supervisor(scene.settings)
    assert live_groups(scene.backends.redis) == []
    scene.backends.redis.flushall()


def connected(path: Path) -> Channel | None:
    """Connect to the supervisor as rank 0 does. Return None if the supervisor does not listen yet."""
    try:
        return connect(path)
    except OSError:
        return None


def test_documents_of_a_worker_that_cannot_be_read_are_counted_by_kind(scene, monkeypatch):
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **given: start(["sleep", "1000"], **given))
    (scene.spool.make_job_folder("abc") / PENDING_UPLOAD).write_text("{")
    scene.backends.submit()
    job = scene.backends.claimed_job(replace(scene.backends.claim(), checkpoint={"version": 7}))
    scene.serve()
    scene.supervisor._components.fetcher.fetch(job)
    with closing(wait_until(lambda: connected(scene.settings.group_folder(0) / "rank-0.sock"))) as rank_0:
        rank_0.send(GroupFailed(message="").model_copy(update={"type": "of_a_later_release"}))
        wait_until(lambda: ("unreadable_records", "message") in counters(scene.backends.redis))
    found = counters(scene.backends.redis)
    for kind in ("spool file", "checkpoint", "message"):
        assert found["unreadable_records", kind] == 1


def test_video_of_the_last_supervisor_is_uploaded(scene):
    job = scene.finished_job()
    scene.serve()
    wait_until(lambda: scene.status(job) == "succeeded")
    record = scene.backends.job_store.client.get(job.job_id)
    assert b"".join(scene.storage.read(record.result.video_key)) == b"video"
    assert (record.attempt, record.timings_s["decode"]) == (1, 2.0)
    wait_until(lambda: scene.spool.job_ids == [])


def test_video_of_a_group_that_is_gone_is_uploaded(scene):
    former = Spool(scene.settings.group_folder(1) / "jobs")
    job = scene.finished_job(former)
    scene.serve()
    wait_until(lambda: scene.status(job) == "succeeded")
    assert not scene.settings.group_folder(1).exists()


def test_group_leaves_the_folders_of_other_groups_alone(scene):
    settings = WorkerSettings(
        **{**scene.settings.model_dump(exclude_unset=True), "ranks": 2, "context_parallel": 1}
    )
    spools = [Spool(settings.group_folder(index) / "jobs") for index in range(2)]
    jobs = [scene.finished_job(spool) for spool in spools]
    build_supervisor(settings)
    assert [spool.job_ids for spool in spools] == [[job.job_id] for job in jobs]


def test_lease_of_a_resumed_upload_is_renewed(scene):
    job = scene.finished_job()
    supervisor = build_supervisor(scene.settings)
    assert supervisor._components.lease_renewer.holds(job.job_id)


def test_video_of_a_job_that_another_group_has_claimed_is_not_uploaded(scene):
    job = scene.finished_job()
    lease = scene.backends.claim_elsewhere(job)
    scene.serve()
    wait_until(lambda: live_groups(scene.backends.redis))
    assert scene.backends.job_store.holder.renew_lease(lease) is None
    assert list(scene.storage.keys(f"jobs/{job.job_id}/")) == []
    assert scene.spool.job_ids == [job.job_id]  # the job may be claimed here again


def test_video_of_a_job_that_has_ended_is_removed(scene, monkeypatch):
    monkeypatch.setattr(spool, "CLEAN_EVERY_S", 0.1)  # the first time comes too early: the job is still held
    job = scene.finished_job()
    scene.backends.job_store.holder.confirm_cancel(job.lease)
    scene.serve()
    wait_until(lambda: scene.spool.job_ids == [])


def test_video_of_a_job_with_a_requested_cancel_is_not_uploaded(scene):
    job = scene.finished_job()
    scene.backends.job_store.client.cancel(job.job_id)
    scene.serve()
    wait_until(lambda: scene.status(job) == "cancelled")
    assert list(scene.storage.keys(f"jobs/{job.job_id}/")) == []


@pytest.mark.integration
def test_group_that_cannot_start_is_published_as_broken_and_claims_nothing(scene):
    job_id = scene.backends.submit()
    scene.backends.tickets.enqueue(job_id)
    scene.serve()
    wait_until(lambda: [group.state for group in live_groups(scene.backends.redis)] == ["broken"])
    assert scene.backends.job_store.client.get(job_id).status == "queued"
    assert scene.backends.tickets.count() == 1


def test_supervisor_delivers_missing_tickets(scene):
    job_id = scene.backends.submit()  # no ticket was delivered
    scene.serve()
    wait_until(lambda: num_tickets(scene.backends.redis) == 1)
    assert scene.backends.job_store.client.get(job_id).status == "queued"


def test_two_workers_cannot_have_the_same_name(scene, monkeypatch):
    monkeypatch.setattr(app, "REGISTRATION_TTL_S", 0.1)
    GroupRegistration(scene.backends.redis, "w-0", ttl_s=60).heartbeat("ready", 2)
    with pytest.raises(GroupTaken, match="w-0"):
        build_supervisor(scene.settings)


def test_name_of_a_dead_worker_is_taken_once_it_expires(scene):
    GroupRegistration(scene.backends.redis, "w-0", ttl_s=0.5).heartbeat("ready", 2)
    scene.serve()
    wait_until(lambda: [group.state for group in live_groups(scene.backends.redis)] != ["ready"])


def test_drained_supervisor_leaves_no_thread_and_no_group(scene):
    before = set(threading.enumerate())
    scene.serve()
    wait_until(lambda: live_groups(scene.backends.redis))
    scene.drain()
    assert set(threading.enumerate()) <= before
    assert live_groups(scene.backends.redis) == []


def test_supervisor_drains_while_its_name_cannot_be_given_up(scene, monkeypatch):
    scene.serve()

    def unavailable(*_: object) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(GroupRegistration, "release", unavailable)
    scene.drain()
    assert not scene.thread.is_alive()


def test_supervisors_of_a_world_drain_together(scene):
    """Spare ones have no registration. When one of them stops, the ranks are of no use to the others."""
    settings = WorkerSettings(
        **{**scene.settings.model_dump(exclude_unset=True), "ranks": 2, "context_parallel": "auto"}
    )
    reported: list[str] = []
    supervisors = build_supervisors(settings, 0, reported.append)
    assert len(supervisors) == 4
    thread = threading.Thread(target=serve_together, args=(supervisors,))
    thread.start()
    wait_until(lambda: {group.group for group in live_groups(scene.backends.redis)} == {"w-0", "w-1"})
    wait_until(lambda: reported)
    supervisors[1].request_drain()
    thread.join(60)
    assert not thread.is_alive()
    assert not list(live_groups(scene.backends.redis))


class StagedSupervisor:
    """Serves until another one has ended. Notes whether the thread of that one lives longer."""

    def __init__(self, other: StagedSupervisor | None = None) -> None:
        self.thread: threading.Thread | None = None
        self.has_ended = threading.Event()
        self.other = other
        self.other_lives = False

    def request_drain(self) -> None:
        pass

    def serve(self) -> None:
        self.thread = threading.current_thread()
        if self.other:
            self.other.has_ended.wait()
            assert self.other.thread
            self.other.thread.join(0.5)
            self.other_lives = self.other.thread.is_alive()
        self.has_ended.set()


def test_thread_that_may_have_started_the_ranks_lives_until_all_supervisors_have_ended():
    """The kernel kills the ranks with that thread, and other supervisors have jobs to save by then."""
    early = StagedSupervisor()
    late = StagedSupervisor(early)
    serve_together(cast(list[Supervisor], [late, early]))
    assert late.other_lives


def test_supervisor_of_a_fixed_group_is_alone(scene):
    settings = WorkerSettings(
        **{**scene.settings.model_dump(exclude_unset=True), "ranks": 2, "context_parallel": 1}
    )
    assert len(build_supervisors(settings, 1, lambda _: None)) == 1
