"""Maintenance in the service: leases, tickets, expiry and files."""

from __future__ import annotations

import logging
from dataclasses import replace
from threading import Event

import pytest

from jobs.errors import Unavailable
from jobs.store.job_store import JobStore
from service.inputs.body import Body
from service.jobs import submission
from service.ops.maintenance import Maintenance
from tests.service.media import encoded, in_base64, picture
from tests.service.working import backend_of_request, tidy
from tests.tickets import num_tickets
from tests.waiting import wait_until

WITH_IMAGE = {"prompt": "a cat", "image": {"base64": in_base64(encoded(picture()))}}


@pytest.fixture
def backend(app):
    return app.state.backend


def at(backend, seconds_later):
    """Return a backend whose clock is ahead."""
    now_s = int(backend.redis.time()[0])
    job_store = JobStore(backend.redis, clock=lambda: (now_s + seconds_later) * 1000)
    return replace(backend, job_store=job_store)


def test_lost_ticket_is_replaced(order, backend, redis):
    order()
    redis.delete(*redis.scan_iter("rq:queue:longcat*"))
    assert num_tickets(redis) == 0
    tidy(backend)
    assert num_tickets(redis) == 1
    tidy(backend)
    assert num_tickets(redis) == 1


def test_job_of_a_dead_worker_is_requeued(order, worker, backend, client):
    job = order()
    worker.job_store.holder.claim("by hand", lease_s=30.0)
    for later in range(0, 121, 5):
        tidy(at(backend, later))
    assert client.get(f"/jobs/{job['id']}").json()["status"] == "queued"


def test_files_of_an_expired_job_are_removed(order, worker, backend, client):
    job = order(**WITH_IMAGE)
    worker.succeed(worker.claim())
    assert len(list(worker.storage.keys(f"jobs/{job['id']}/"))) >= 3
    tidy(at(backend, 8 * 86400))
    assert client.get(f"/jobs/{job['id']}").status_code == 404
    assert list(worker.storage.keys(f"jobs/{job['id']}/")) == []


def test_files_of_an_aborted_submission_are_removed(worker, backend):
    worker.job_store.client.reserve("broken-off")
    (worker.folder / "input").write_bytes(b"x")
    worker.storage.put("jobs/broken-off/inputs/image.png", worker.folder / "input", "image/png")
    tidy(at(backend, 2 * 3600))
    assert list(worker.storage.keys("jobs/broken-off/")) == []


@pytest.mark.usefixtures("client")
def test_files_of_a_process_that_died_before_queueing_are_removed(worker, backend, monkeypatch):
    def die(*_: object) -> None:
        raise SystemExit

    before = set(worker.storage.keys("jobs/"))
    monkeypatch.setattr(backend.job_store.client, "submit", die)
    with pytest.raises(SystemExit):
        submission.submit(Body(WITH_IMAGE), backend_of_request(backend))
    assert len(set(worker.storage.keys("jobs/")) - before) == 1
    tidy(at(backend, 3600))
    assert set(worker.storage.keys("jobs/")) == before


def test_submission_that_took_too_long_to_store_is_answered_503(client, backend, monkeypatch):
    expired = JobStore(backend.redis, late_upload_s=0.0)
    monkeypatch.setattr(backend.job_store.client, "reserve", expired.client.reserve)
    answer = client.post("/generate", json=WITH_IMAGE)
    assert answer.status_code == 503
    assert "try again" in answer.json()["error"]["message"]


def maintained(backend):
    return Maintenance(backend, is_checked=True, fail=pytest.fail)


def often(backend, **changes):
    """Return a backend with a very short maintenance interval."""
    settings = backend.settings.model_copy(update={"sweep_interval_s": 0.01})
    return replace(backend, settings=settings, **changes)


class FailingSweep:
    """Replace the sweep of a job store: it raises each of `problems` once, then works and is counted."""

    def __init__(self, job_store, problems):
        self._sweep = job_store.maintenance.sweep
        self._problems = list(problems)
        self.num_sweeps = 0

    def __call__(self):
        if self._problems:
            raise self._problems.pop(0)
        self.num_sweeps += 1
        return self._sweep()


def test_maintenance_continues_after_a_failed_sweep(backend, redis, monkeypatch, caplog):
    sweep = FailingSweep(backend.job_store, [Unavailable("away"), ZeroDivisionError("a mistake")])
    monkeypatch.setattr(backend.job_store.maintenance, "sweep", sweep)
    with caplog.at_level(logging.WARNING), maintained(often(backend)):
        wait_until(lambda: sweep.num_sweeps >= 2)
    assert "maintenance is postponed: away" in caplog.text
    assert "a mistake" in caplog.text


class Hanging:
    """A storage that does not answer until it is released."""

    def __init__(self):
        self.asked, self.may_answer = Event(), Event()

    def delete_prefix(self, prefix, keep=()):
        self.asked.set()
        self.may_answer.wait()


def test_hanging_storage_does_not_delay_sweeps(order, backend, redis):
    hasty = JobStore(redis, late_upload_s=0.0)
    hasty.client.reserve("broken-off")
    storage = Hanging()
    with maintained(often(backend, job_store=hasty, storage=storage)):
        assert storage.asked.wait(30)
        order()
        redis.delete(*redis.scan_iter("rq:queue:longcat*"))
        wait_until(lambda: num_tickets(redis) == 1)
        storage.may_answer.set()
