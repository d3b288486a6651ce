"""A supervisor put together from settings, whose group never comes up: everything else works without it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from jobs.errors import GroupTaken, Unavailable
from jobs.registration import GroupRegistration, live_groups
from jobs.storage.folder import FolderStorage
from tests.waiting import wait_until
from tests.worker.examples import Desk, a_film
from worker.settings import WorkerSettings
from worker.supervisor import app as crew
from worker.supervisor.app import build_supervisor
from worker.supervisor.job import ClaimedJob
from worker.supervisor.spool import Spool, Waiting
from worker.supervisor.supervisor import Supervisor


class Scene:
    def __init__(self, desk: Desk, redis_url: str, folder: Path) -> None:
        self.desk = desk
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
        self.supervisor = build_supervisor(self.settings, 0)
        self.thread = threading.Thread(target=self.supervisor.serve)
        self.thread.start()

    def end(self) -> None:
        if self.supervisor:
            self.supervisor.end()
            self.thread.join(60)
            assert not self.thread.is_alive()

    def finish(self) -> ClaimedJob:
        """A job whose film lies in the spool of a supervisor that is gone."""
        self.desk.submit()
        claim = self.desk.claim("w-0")
        held = ClaimedJob(claim, self.spool.folder(claim.job.id))
        film = a_film(held.folder)
        self.spool.keep_film(held.job_id, Waiting(fence=claim.fence, film=film, timings_s={"decode": 2.0}))
        return held

    def status(self, held: ClaimedJob) -> str:
        return self.desk.job_store.client.get(held.job_id).status


@pytest.fixture
def scene(desk: Desk, redis_server: str, tmp_path: Path):
    scene = Scene(desk, redis_server, tmp_path)
    yield scene
    scene.end()


def test_a_film_that_the_last_supervisor_left_is_stored(scene):
    held = scene.finish()
    scene.serve()
    wait_until(lambda: scene.status(held) == "succeeded")
    job = scene.desk.job_store.client.get(held.job_id)
    assert b"".join(scene.storage.read(job.result.video_key)) == b"film"
    assert (job.attempt, job.timings_s["decode"]) == (1, 2.0)
    wait_until(lambda: scene.spool.job_ids == [])


def test_a_film_of_a_job_that_somebody_else_has_by_now_is_not(scene):
    held = scene.finish()
    taken = scene.desk.take_over(held)
    scene.serve()
    wait_until(lambda: live_groups(scene.desk.redis))
    assert scene.desk.job_store.holder.renew_lease(taken) == "go"
    assert list(scene.storage.keys(f"jobs/{held.job_id}/")) == []
    assert scene.spool.job_ids == [held.job_id]  # it may come back


def test_a_film_of_a_job_that_ended_meanwhile_is_cleared_away(scene):
    held = scene.finish()
    scene.desk.job_store.holder.confirm_cancel(held.claim)
    scene.serve()
    wait_until(lambda: scene.spool.job_ids == [])


def test_a_film_of_a_job_that_was_cancelled_meanwhile_is_not_stored(scene):
    held = scene.finish()
    scene.desk.job_store.client.cancel(held.job_id)
    scene.serve()
    wait_until(lambda: scene.status(held) == "cancelled")
    assert list(scene.storage.keys(f"jobs/{held.job_id}/")) == []


def test_a_group_that_never_comes_up_is_shown_as_broken_and_takes_no_job(scene):
    job_id = scene.desk.submit()
    scene.desk.tickets.enqueue(job_id)
    scene.serve()
    wait_until(lambda: [group.state for group in live_groups(scene.desk.redis)] == ["broken"])
    assert scene.desk.job_store.client.get(job_id).status == "queued"
    assert scene.desk.tickets.count() == 1


def test_a_supervisor_sweeps_for_all(scene):
    job_id = scene.desk.submit()  # no ticket was delivered
    scene.serve()
    wait_until(lambda: scene.desk.tickets.count() == 1)
    assert scene.desk.job_store.client.get(job_id).status == "queued"


def test_two_workers_cannot_have_the_same_name(scene, monkeypatch):
    monkeypatch.setattr(crew, "SEAT_TTL_S", 0.1)
    GroupRegistration(scene.desk.redis, "w-0", ttl_s=60).heartbeat("ready", 2)
    with pytest.raises(GroupTaken, match="w-0"):
        build_supervisor(scene.settings, 0)


def test_a_name_that_is_given_up_a_moment_later_is_taken(scene):
    GroupRegistration(scene.desk.redis, "w-0", ttl_s=0.5).heartbeat("ready", 2)
    scene.serve()
    wait_until(lambda: [group.state for group in live_groups(scene.desk.redis)] != ["ready"])


def test_it_leaves_even_if_redis_does_not_hear_of_it(scene, monkeypatch):
    scene.serve()

    def away(*_: object) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(GroupRegistration, "leave", away)
    scene.end()
