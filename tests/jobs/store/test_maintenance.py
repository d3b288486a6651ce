"""Sweeps handle dead holders, long waits, expired jobs and lost tickets."""

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
from tests.jobs.examples import LEASE_S, REQUIREMENT, AwayStorage, ExampleStore, a_result, a_submission
from tests.waiting import wait_until


@pytest.fixture
def tickets(redis: Redis) -> TicketQueue:
    return TicketQueue(redis)


class TestLeases:
    def test_job_of_a_dead_holder_is_requeued(self, store: ExampleStore):
        claim = store.start()
        store.maintenance.sweep()
        store.clock.advance(LEASE_S / 3)
        for _ in range(2):
            assert store.maintenance.sweep().requeued == ()
            store.clock.advance(LEASE_S / 3)
        assert store.maintenance.sweep().requeued == (claim.job.id,)
        assert store.client.get(claim.job.id).status == "queued"
        assert store.claim("b").job.attempt == 2

    def test_last_attempt_fails_when_its_lease_runs_out(self, redis: Redis):
        store = ExampleStore(redis, max_attempts=2)
        store.submit(id="poison")
        for _ in range(2):
            store.claim()
            store.lose_lease()
        job = store.client.get("poison")
        assert job.error is not None
        assert (job.status, job.error.code) == ("failed", "worker_crashed")

    def test_uploading_job_of_a_dead_holder_is_requeued(self, store: ExampleStore):
        claim = store.start()
        store.holder.begin_upload(claim)
        store.lose_lease()
        assert store.client.get(claim.job.id).status == "queued"

    @pytest.mark.parametrize("away_s", [LEASE_S / 2, LEASE_S + 1, 3600])
    def test_leases_do_not_run_out_while_redis_is_away(self, store: ExampleStore, away_s: float):
        claim = store.start()
        store.maintenance.sweep()
        assert store.holder.renew_lease(claim) is None
        store.clock.advance(away_s)
        for _ in range(int(LEASE_S)):
            assert store.maintenance.sweep().requeued == ()
            store.clock.advance(1)
        assert store.holder.renew_lease(claim) is None

    def test_holder_that_died_during_an_outage_loses_its_job_one_lease_later(self, store: ExampleStore):
        claim = store.start()
        store.maintenance.sweep()
        store.clock.advance(3600)
        store.maintenance.sweep()
        for _ in range(int(LEASE_S) - 1):
            store.clock.advance(1)
            assert store.maintenance.sweep().requeued == ()
        store.clock.advance(1)
        assert store.maintenance.sweep().requeued == (claim.job.id,)

    def test_renewal_restores_the_lease_grace(self, store: ExampleStore):
        store.maintenance.sweep()
        claim = store.start()
        for _ in range(3):
            store.clock.advance(3600)
            assert store.maintenance.sweep().requeued == ()
            assert store.holder.renew_lease(claim) is None

    def test_next_holder_gets_a_lease_grace_as_well(self, store: ExampleStore):
        store.maintenance.sweep()
        store.start()
        for _ in range(2):
            store.clock.advance(LEASE_S + 1)
            store.maintenance.sweep()
        store.claim("b")
        store.clock.advance(3600)
        assert store.maintenance.sweep().requeued == ()

    def test_leases_run_out_also_where_sweeps_are_rare(self, store: ExampleStore):
        store.maintenance.sweep()
        store.start()
        swept = []
        for _ in range(3):
            store.clock.advance(LEASE_S + 1)
            swept.append(len(store.maintenance.sweep().requeued))
        assert swept == [0, 1, 0]


class TestQueueDeadline:
    def test_job_that_waits_too_long_fails(self, store: ExampleStore):
        job = store.submit(max_queue_s=60)
        store.clock.advance(59)
        assert store.maintenance.sweep().ended == ()
        store.clock.advance(1)
        assert store.maintenance.sweep().ended == (job.id,)
        failed = store.client.get(job.id)
        assert failed.error is not None
        assert (failed.status, failed.error.code) == ("failed", "deadline_exceeded")
        assert store.holder.claim("a", LEASE_S) is None

    def test_job_that_started_in_time_may_wait_again(self, store: ExampleStore):
        claim = store.start(max_queue_s=60)
        store.holder.requeue(claim, crashed=True)
        store.clock.advance(61)
        assert store.maintenance.sweep().ended == ()
        assert store.claim().job.attempt == 2


class TestRetention:
    def test_ended_job_is_removed_when_it_expires(self, redis: Redis):
        store = ExampleStore(redis, retention_s=100)
        claim = store.start()
        store.holder.succeed(claim, a_result(claim), {})
        store.clock.advance(99)
        assert store.maintenance.sweep().expired == ()
        assert store.client.events(claim.job.id)
        store.clock.advance(1)
        assert store.maintenance.sweep().expired == (claim.job.id,)
        with pytest.raises(JobNotFound):
            store.client.get(claim.job.id)
        assert store.client.events(claim.job.id) == []
        assert store.client.list_jobs() == []
        assert set(store.client.counts().values()) == {0}

    def test_job_keeps_the_retention_of_its_submission(self, redis: Redis):
        store = ExampleStore(redis, retention_s=100)
        store.client.cancel(store.submit().id)
        other = JobStore(redis, retention_s=1, clock=store.clock)
        store.clock.advance(50)
        assert other.maintenance.sweep().expired == ()

    def test_unfinished_job_does_not_expire(self, redis: Redis):
        store = ExampleStore(redis, retention_s=1)
        job = store.submit()
        store.clock.advance(10**6)
        store.maintenance.sweep()
        assert store.client.get(job.id).status == "queued"

    def test_many_jobs_expire_over_several_sweeps(self, redis: Redis):
        store = ExampleStore(redis, retention_s=1)
        for _ in range(150):
            store.client.cancel(store.submit().id)
        store.clock.advance(2)
        assert [len(store.maintenance.sweep().expired) for _ in range(3)] == [100, 50, 0]


class TestLateFiles:
    def test_of_a_running_job_are_kept(self, store: ExampleStore):
        claim = store.start()
        store.maintenance.report_late_file(claim.job.id)
        assert store.due_file_removals == set()

    def test_of_an_ended_job_are_removed(self, store: ExampleStore):
        claim = store.start()
        store.holder.confirm_cancel(claim)
        store.confirm_all_file_removals()
        store.wait_for_late_uploads()
        store.confirm_all_file_removals()
        store.maintenance.report_late_file(claim.job.id)
        assert store.due_file_removals == {claim.job.id}

    def test_of_an_unknown_job_are_removed(self, store: ExampleStore):
        store.maintenance.report_late_file("gone")
        assert store.due_file_removals == {"gone"}


class TestConcurrency:
    def test_job_is_requeued_by_one_of_many_sweeps(self, redis: Redis, redis_server: str):
        store = ExampleStore(redis)
        claims = [store.start() for _ in range(20)]
        for _ in range(int(LEASE_S)):
            store.maintenance.sweep()
            store.clock.advance(1)
        stores = [JobStore(redis, clock=store.clock) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            swept = list(pool.map(lambda store: store.maintenance.sweep().requeued, stores))
        requeued = [job_id for ids in swept for job_id in ids]
        assert sorted(requeued) == sorted(claim.job.id for claim in claims)
        assert {job.attempt for job in store.client.list_jobs(limit=100)} == {1}

    def test_job_is_claimed_by_one_of_many_groups(self, store: ExampleStore):
        ids = {store.client.submit(a_submission()).job.id for _ in range(60)}

        def claim_all(group: str) -> list[str]:
            claims = iter(lambda: store.holder.claim(group, LEASE_S), None)
            return [claim.job.id for claim in claims]

        with ThreadPoolExecutor(8) as pool:
            claimed = [job_id for part in pool.map(claim_all, "abcdefgh") for job_id in part]
        assert len(claimed) == 60
        assert set(claimed) == ids

    def test_concurrent_cancel_and_end_agree_on_the_status(self, store: ExampleStore):
        for _ in range(30):
            claim = store.start()
            with ThreadPoolExecutor(2) as pool:
                ended = pool.submit(store.holder.succeed, claim, a_result(claim), {})
                cancelled = pool.submit(store.client.cancel, claim.job.id)
            status = store.client.get(claim.job.id).status
            assert ended.result() == status
            assert (cancelled.exception() is None) == (status == "cancelled")


class TestTickets:
    def test_queued_job_without_a_ticket_gets_one(self, store: ExampleStore, tickets: TicketQueue):
        store.submit()
        store.submit()
        tickets.enqueue("one", REQUIREMENT)
        sweep(store, tickets)
        assert tickets.count(REQUIREMENT) == 2

    def test_sweeps_enqueue_no_surplus_tickets(self, store: ExampleStore, tickets: TicketQueue):
        store.submit()
        for _ in range(5):
            sweep(store, tickets)
        assert tickets.count(REQUIREMENT) == 1

    def test_running_job_needs_no_ticket(self, store: ExampleStore, tickets: TicketQueue):
        store.start()
        sweep(store, tickets)
        assert tickets.count(REQUIREMENT) == 0

    def test_job_requeued_by_a_sweep_has_a_ticket(self, store: ExampleStore, tickets: TicketQueue):
        store.start()
        store.lose_lease()
        sweep(store, tickets)
        assert tickets.count(REQUIREMENT) == 1


class TestThreads:
    @pytest.fixture
    def stop(self) -> Iterator[Event]:
        event = Event()
        yield event
        event.set()

    def test_sweeps_replace_lost_tickets(self, store: ExampleStore, tickets: TicketQueue, stop: Event):
        store.client.submit(a_submission())
        thread = Thread(target=keep_sweeping, args=(store, tickets, stop, 0.01))
        thread.start()
        wait_until(lambda: tickets.count(REQUIREMENT) == 1)
        stop.set()
        thread.join()

    def test_removal_continues_after_an_outage_of_the_storage(
        self, store: ExampleStore, storage: FolderStorage, stop: Event, caplog: pytest.LogCaptureFixture
    ):
        caplog.set_level(logging.WARNING)
        store.client.delete(store.client.submit(a_submission()).job.id)
        away = AwayStorage(storage)
        thread = Thread(target=keep_removing, args=(store, away, stop, 0.01))
        thread.start()
        wait_until(lambda: "postponed" in caplog.text)
        away.is_away = False
        wait_until(lambda: not store.due_file_removals)
        stop.set()
        thread.join()


class TestSweeper:
    def test_one_process_sweeps_and_another_takes_over_within_two_seconds(self, store: ExampleStore, redis):
        other = JobStore(redis, clock=store.clock)
        assert not store.maintenance.sweep().by_other
        assert other.maintenance.sweep().by_other
        store.clock.advance(0.9)
        assert not store.maintenance.sweep().by_other
        store.clock.advance(0.9)
        assert other.maintenance.sweep().by_other
        store.clock.advance(0.2)
        assert not other.maintenance.sweep().by_other
        assert store.maintenance.sweep().by_other

    def test_clock_that_steps_back_does_not_stop_sweeps(self, store: ExampleStore, redis):
        store.maintenance.sweep()
        store.clock.advance(-3600)
        assert not JobStore(redis, clock=store.clock).maintenance.sweep().by_other


def test_sweep_removes_keys_that_only_an_earlier_release_needs(redis: Redis, store: ExampleStore):
    store.submit()
    redis.set("longcat:capability", "{}")
    redis.set("longcat:queue:checked", 1)
    keys = set(redis.keys())
    store.maintenance.sweep()
    assert keys - set(redis.keys()) == {b"longcat:capability", b"longcat:queue:checked"}
