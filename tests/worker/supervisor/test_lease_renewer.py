from __future__ import annotations

import queue
import threading

import pytest

from jobs.errors import Unavailable
from jobs.record import Progress
from jobs.registration import GroupRegistration
from jobs.store.job_store import JobStore
from tests.waiting import wait_until
from tests.worker.supervisor.backends import LocalBackends
from worker.supervisor.job import ClaimedJob
from worker.supervisor.lease_renewer import LeaseRenewer


class Scene:
    """A lease renewer whose renewals are counted and can fail."""

    def __init__(self, backends: LocalBackends, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backends = backends
        self.job_store = JobStore(backends.redis)
        self.is_available = True
        self.renewals = 0
        self._renew_lease = self.job_store.holder.renew_lease
        monkeypatch.setattr(self.job_store.holder, "renew_lease", self.renew_lease)
        self.notified: queue.SimpleQueue[ClaimedJob] = queue.SimpleQueue()
        self.renewer = LeaseRenewer(self.job_store, self.notified.put, preempt_after_s=0.0)

    def renew_lease(self, lease, progress=None, preempt_after_s=None, num_gpus=None):
        self.renewals += 1
        if not self.is_available:
            raise Unavailable("Redis is unavailable")
        return self._renew_lease(lease, progress, preempt_after_s, num_gpus)

    def claimed_job(self) -> ClaimedJob:
        job = self.backends.claimed_job()
        self.renewer.add(job)
        return job

    def wait_for_renewals(self, count: int = 3) -> None:
        before = self.renewals
        wait_until(lambda: self.renewals >= before + count)


@pytest.fixture
def scene(backends: LocalBackends, monkeypatch: pytest.MonkeyPatch):
    scene = Scene(backends, monkeypatch)
    scene.renewer.start()
    yield scene
    scene.renewer.stop()
    scene.renewer.join(30)
    assert not scene.renewer.is_alive()


def test_low_priority_job_is_asked_to_stop_for_a_high_priority_job(scene):
    scene.backends.submit(priority="low")
    job = scene.backends.claimed_job(scene.backends.claim("a"))
    GroupRegistration(scene.backends.redis, "a", ttl_s=60).heartbeat("busy", ranks=1, job=job.job_id)
    scene.renewer.add(job)
    scene.wait_for_renewals()
    assert job.stop_request is None
    scene.backends.submit(priority="high")
    assert scene.notified.get(timeout=30) is job
    assert job.stop_request == "preempt"


def test_lease_of_an_added_job_is_renewed(scene, redis):
    job = scene.claimed_job()
    before = redis.zscore("longcat:leases", job.job_id)
    scene.wait_for_renewals()
    assert redis.zscore("longcat:leases", job.job_id) > before


def test_progress_is_recorded(scene):
    job = scene.claimed_job()
    job.progress = Progress(phase="denoise", step=3, num_steps=4)
    wait_until(lambda: scene.backends.job_store.client.get(job.job_id).progress == job.progress)


def test_number_of_gpus_is_recorded(scene):
    job = scene.claimed_job()
    job.num_gpus = 3
    wait_until(lambda: scene.backends.job_store.client.get(job.job_id).num_gpus == 3)


def test_unchanged_progress_is_no_event(scene):
    job = scene.claimed_job()
    scene.wait_for_renewals(4)
    events = [event for event in scene.backends.job_store.client.events(job.job_id) if event.progress]
    assert len(events) == 1


@pytest.mark.parametrize("reason", ["cancel", "lease_lost"])
def test_stop_request_is_notified_once(scene, reason):
    job = scene.claimed_job()
    scene.wait_for_renewals(1)
    if reason == "cancel":
        scene.backends.job_store.client.cancel(job.job_id)
    else:
        scene.backends.claim_elsewhere(job)
    assert scene.notified.get(timeout=30) is job
    assert job.stop_request == reason
    scene.wait_for_renewals(3)
    assert scene.notified.empty()


def test_jobs_continue_while_redis_is_unavailable(scene):
    job = scene.claimed_job()
    scene.is_available = False
    scene.wait_for_renewals(3)
    assert (job.stop_request, scene.notified.empty()) == (None, True)
    scene.is_available = True
    scene.backends.job_store.client.cancel(job.job_id)
    assert scene.notified.get(timeout=30) is job


def test_lease_of_a_removed_job_is_not_renewed(scene):
    job = scene.claimed_job()
    assert scene.renewer.holds(job.job_id)
    scene.renewer.remove(job)
    scene.backends.job_store.holder.confirm_cancel(job.lease)
    other = scene.claimed_job()
    scene.wait_for_renewals(3)
    assert not scene.renewer.holds(job.job_id)
    assert scene.renewer.holds(other.job_id)
    assert (job.stop_request, scene.notified.empty()) == (None, True)


def test_reply_about_a_job_that_was_removed_meanwhile_is_ignored(backends, monkeypatch):
    scene = Scene(backends, monkeypatch)
    job = scene.backends.claimed_job()
    called, reply = threading.Event(), threading.Event()

    def slow(lease, progress=None, preempt_after_s=None, num_gpus=None):
        called.set()
        reply.wait(30)
        return "lease_lost"

    monkeypatch.setattr(scene.job_store.holder, "renew_lease", slow)
    scene.renewer.add(job)
    scene.renewer.start()
    called.wait(30)
    scene.renewer.remove(job)
    scene.renewer.stop()
    reply.set()
    scene.renewer.join(30)
    assert not scene.renewer.is_alive()
    assert (job.stop_request, scene.notified.empty()) == (None, True)


def test_several_leases_are_renewed(scene):
    first, second = scene.claimed_job(), scene.claimed_job()
    scene.backends.job_store.client.cancel(second.job_id)
    assert scene.notified.get(timeout=30) is second
    assert first.stop_request is None
