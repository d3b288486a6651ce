"""What sweeping repairs: dead holders, long waits, expired jobs, lost tickets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import pytest
from redis import Redis

from jobs.errors import JobNotFound
from jobs.maintenance import keep_removing, keep_sweeping, sweep
from jobs.queue import TicketQueue
from jobs.storage.folder import FolderStorage
from jobs.store.job_store import JobStore
from tests.jobs.examples import LEASE_S, AwayStorage, Desk, a_result, a_submission
from tests.waiting import wait_until


@pytest.fixture
def tickets(redis: Redis) -> TicketQueue:
    return TicketQueue(redis)


class TestLeases:
    def test_a_job_whose_holder_died_is_queued_again(self, desk: Desk):
        claim = desk.start()
        desk.job_store.maintenance.sweep()
        desk.clock.advance(LEASE_S / 3)
        for _ in range(2):
            assert desk.job_store.maintenance.sweep().requeued == ()
            desk.clock.advance(LEASE_S / 3)
        assert desk.job_store.maintenance.sweep().requeued == (claim.job.id,)
        assert desk.job_store.client.get(claim.job.id).status == "queued"
        assert desk.claim("b").attempt == 2

    def test_the_last_attempt_ends_with_its_lease(self, redis: Redis):
        desk = Desk.open(redis, max_attempts=2)
        desk.submit(id="poison")
        for _ in range(2):
            desk.claim()
            desk.lose_lease()
        job = desk.job_store.client.get("poison")
        assert job.error is not None
        assert (job.status, job.error.code) == ("failed", "worker_crashed")

    def test_a_lost_upload_is_made_again(self, desk: Desk):
        claim = desk.start()
        desk.job_store.holder.begin_upload(claim)
        desk.lose_lease()
        assert desk.job_store.client.get(claim.job.id).status == "queued"

    @pytest.mark.parametrize("away_s", [LEASE_S / 2, LEASE_S + 1, 3600])
    def test_leases_do_not_run_out_while_redis_is_away(self, desk: Desk, away_s: float):
        claim = desk.start()
        desk.job_store.maintenance.sweep()
        assert desk.job_store.holder.renew_lease(claim) is None
        desk.clock.advance(away_s)
        for _ in range(int(LEASE_S)):
            assert desk.job_store.maintenance.sweep().requeued == ()
            desk.clock.advance(1)
        assert desk.job_store.holder.renew_lease(claim) is None

    def test_a_holder_that_died_while_redis_was_away_loses_its_job_one_lease_later(self, desk: Desk):
        claim = desk.start()
        desk.job_store.maintenance.sweep()
        desk.clock.advance(3600)
        desk.job_store.maintenance.sweep()
        for _ in range(int(LEASE_S) - 1):
            desk.clock.advance(1)
            assert desk.job_store.maintenance.sweep().requeued == ()
        desk.clock.advance(1)
        assert desk.job_store.maintenance.sweep().requeued == (claim.job.id,)

    def test_a_holder_that_was_heard_of_is_spared_the_next_time_as_well(self, desk: Desk):
        desk.job_store.maintenance.sweep()
        claim = desk.start()
        for _ in range(3):
            desk.clock.advance(3600)
            assert desk.job_store.maintenance.sweep().requeued == ()
            assert desk.job_store.holder.renew_lease(claim) is None

    def test_the_next_holder_is_spared_as_well(self, desk: Desk):
        desk.job_store.maintenance.sweep()
        desk.start()
        for _ in range(2):
            desk.clock.advance(LEASE_S + 1)
            desk.job_store.maintenance.sweep()
        desk.claim("b")
        desk.clock.advance(3600)
        assert desk.job_store.maintenance.sweep().requeued == ()

    def test_leases_run_out_also_where_sweeps_are_rare(self, desk: Desk):
        desk.job_store.maintenance.sweep()
        desk.start()
        swept = []
        for _ in range(3):
            desk.clock.advance(LEASE_S + 1)
            swept.append(len(desk.job_store.maintenance.sweep().requeued))
        assert swept == [0, 1, 0]


class TestQueueDeadline:
    def test_a_job_that_waits_too_long_fails(self, desk: Desk):
        job = desk.submit(max_queue_s=60)
        desk.clock.advance(59)
        assert desk.job_store.maintenance.sweep().ended == ()
        desk.clock.advance(1)
        assert desk.job_store.maintenance.sweep().ended == (job.id,)
        failed = desk.job_store.client.get(job.id)
        assert failed.error is not None
        assert (failed.status, failed.error.code) == ("failed", "deadline_exceeded")
        assert desk.job_store.holder.claim("a", LEASE_S) is None

    def test_a_job_that_began_in_time_may_wait_again(self, desk: Desk):
        claim = desk.start(max_queue_s=60)
        desk.job_store.holder.requeue(claim, crashed=True)
        desk.clock.advance(61)
        assert desk.job_store.maintenance.sweep().ended == ()
        assert desk.claim().attempt == 2


class TestRetention:
    def test_an_ended_job_is_removed_when_it_expires(self, redis: Redis):
        desk = Desk.open(redis, retention_s=100)
        claim = desk.start()
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        desk.clock.advance(99)
        assert desk.job_store.maintenance.sweep().expired == ()
        assert desk.job_store.client.events(claim.job.id)
        desk.clock.advance(1)
        assert desk.job_store.maintenance.sweep().expired == (claim.job.id,)
        with pytest.raises(JobNotFound):
            desk.job_store.client.get(claim.job.id)
        assert desk.job_store.client.events(claim.job.id) == []
        assert desk.job_store.client.page() == []
        assert set(desk.job_store.client.counts().values()) == {0}

    def test_a_job_keeps_the_retention_it_was_submitted_with(self, redis: Redis):
        desk = Desk.open(redis, retention_s=100)
        desk.job_store.client.cancel(desk.submit().id)
        other = JobStore(redis, retention_s=1, clock=desk.clock)
        desk.clock.advance(50)
        assert other.maintenance.sweep().expired == ()

    def test_a_job_that_has_not_ended_does_not_expire(self, redis: Redis):
        desk = Desk.open(redis, retention_s=1)
        job = desk.submit()
        desk.clock.advance(10**6)
        desk.job_store.maintenance.sweep()
        assert desk.job_store.client.get(job.id).status == "queued"

    def test_many_jobs_expire_over_several_sweeps(self, redis: Redis):
        desk = Desk.open(redis, retention_s=1)
        for _ in range(150):
            desk.job_store.client.cancel(desk.submit().id)
        desk.clock.advance(2)
        assert [len(desk.job_store.maintenance.sweep().expired) for _ in range(3)] == [100, 50, 0]


class TestManyAtOnce:
    def test_a_job_is_requeued_by_one_of_many_sweepers(self, redis: Redis, redis_server: str):
        desk = Desk.open(redis)
        claims = [desk.start() for _ in range(20)]
        for _ in range(int(LEASE_S)):
            desk.job_store.maintenance.sweep()
            desk.clock.advance(1)
        job_stores = [JobStore(redis, clock=desk.clock) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            swept = list(pool.map(lambda job_store: job_store.maintenance.sweep().requeued, job_stores))
        requeued = [job_id for ids in swept for job_id in ids]
        assert sorted(requeued) == sorted(claim.job.id for claim in claims)
        assert {job.attempt for job in desk.job_store.client.page(limit=100)} == {1}

    def test_a_job_is_claimed_by_one_of_many_groups(self, job_store: JobStore):
        ids = {job_store.client.submit(a_submission()).id for _ in range(60)}

        def claim_all(group: str) -> list[str]:
            claims = iter(lambda: job_store.holder.claim(group, LEASE_S), None)
            return [claim.job.id for claim in claims]

        with ThreadPoolExecutor(8) as pool:
            claimed = [job_id for part in pool.map(claim_all, "abcdefgh") for job_id in part]
        assert len(claimed) == 60
        assert set(claimed) == ids

    def test_of_a_cancel_and_an_end_at_once_one_wins_and_both_are_told(self, desk: Desk):
        for _ in range(30):
            claim = desk.start()
            with ThreadPoolExecutor(2) as pool:
                ended = pool.submit(desk.job_store.holder.succeed, claim, a_result(claim), {})
                cancelled = pool.submit(desk.job_store.client.cancel, claim.job.id)
            status = desk.job_store.client.get(claim.job.id).status
            assert ended.result() == status
            assert (cancelled.exception() is None) == (status == "cancelled")


class TestTickets:
    def test_a_queued_job_without_a_ticket_is_delivered_again(self, desk: Desk, tickets: TicketQueue):
        desk.submit()
        desk.submit()
        tickets.deliver("one")
        sweep(desk.job_store, tickets)
        assert tickets.count() == 2

    def test_tickets_are_not_heaped_up(self, desk: Desk, tickets: TicketQueue):
        desk.submit()
        for _ in range(5):
            sweep(desk.job_store, tickets)
        assert tickets.count() == 1

    def test_a_running_job_needs_no_ticket(self, desk: Desk, tickets: TicketQueue):
        desk.start()
        sweep(desk.job_store, tickets)
        assert tickets.count() == 0

    def test_a_job_that_a_sweep_requeued_has_a_ticket(self, desk: Desk, tickets: TicketQueue):
        desk.start()
        desk.lose_lease()
        sweep(desk.job_store, tickets)
        assert tickets.count() == 1


class TestThreads:
    @pytest.fixture
    def stop(self) -> Iterator[Event]:
        event = Event()
        yield event
        event.set()

    def test_a_sweeping_thread_brings_lost_tickets_back(
        self, job_store: JobStore, tickets: TicketQueue, stop: Event
    ):
        job_store.client.submit(a_submission())
        thread = Thread(target=keep_sweeping, args=(job_store, tickets, stop, 0.01))
        thread.start()
        wait_until(lambda: tickets.count() == 1)
        stop.set()
        thread.join()

    def test_a_removing_thread_outlives_a_storage_that_is_away(
        self, job_store: JobStore, storage: FolderStorage, stop: Event, caplog: pytest.LogCaptureFixture
    ):
        caplog.set_level(logging.WARNING)
        job_store.client.delete(job_store.client.submit(a_submission()).id)
        away = AwayStorage(storage)
        thread = Thread(target=keep_removing, args=(job_store, away, stop, 0.01))
        thread.start()
        wait_until(lambda: "put off" in caplog.text)
        away.is_away = False
        wait_until(lambda: not job_store.maintenance.due_file_removals())
        stop.set()
        thread.join()
