"""Webhooks wait in the outbox from the very step that changes the job until they are settled."""

from __future__ import annotations

import pytest
from redis import Redis

from jobs.errors import GenerationFailed
from jobs.outbox import Attempt, Delivery, Outbox
from tests.jobs.examples import Desk, a_result, keys_of

URL = "https://example.com/hook"


@pytest.fixture
def outbox(redis: Redis, desk: Desk) -> Outbox:
    return Outbox(redis, desk.clock)


def take_all(outbox: Outbox) -> list[Delivery]:
    return list(iter(lambda: outbox.take(60), None))


def events(outbox: Outbox) -> list[str]:
    return [delivery.event for delivery in take_all(outbox)]


def attempt(delivery: Delivery, outcome="delivered", **fields) -> Attempt:
    return Attempt(event=delivery.event, attempt=delivery.attempt, outcome=outcome, **fields)


class TestWhatIsTold:
    def test_is_the_start_and_the_end(self, desk: Desk, outbox: Outbox):
        claim = desk.start(webhook_url=URL)
        desk.clock.advance(1)
        desk.ledger.begin_upload(claim)
        desk.ledger.succeed(claim, a_result(claim), {})
        assert events(outbox) == ["started", "succeeded"]

    def test_is_a_failure_and_a_cancellation_too(self, desk: Desk, outbox: Outbox):
        desk.ledger.cancel(desk.submit(webhook_url=URL).id)
        desk.clock.advance(1)
        desk.ledger.fail(desk.start(webhook_url=URL, webhook_events=("failed",)), GenerationFailed("no"), {})
        assert events(outbox) == ["cancelled", "failed"]

    def test_is_nothing_without_a_url(self, desk: Desk, outbox: Outbox):
        claim = desk.start()
        desk.ledger.succeed(claim, a_result(claim), {})
        assert events(outbox) == []

    def test_is_only_what_is_wanted(self, desk: Desk, outbox: Outbox):
        for _ in range(2):
            claim = desk.start(webhook_url=URL, webhook_events=("succeeded", "cancelled"))
            desk.ledger.succeed(claim, a_result(claim), {})
        assert events(outbox) == ["succeeded", "succeeded"]

    def test_is_one_start_however_often_a_job_is_begun(self, desk: Desk, outbox: Outbox):
        claim = desk.start(webhook_url=URL)
        desk.ledger.requeue(claim, crashed=False)
        desk.claim()
        assert events(outbox) == ["started"]

    def test_is_told_once_though_replies_are_lost(self, desk: Desk, outbox: Outbox):
        claim = desk.start(webhook_url=URL, webhook_events=("succeeded",))
        for _ in range(3):
            desk.ledger.succeed(claim, a_result(claim), {})
        assert events(outbox) == ["succeeded"]

    def test_is_the_job_as_it_was_then(self, desk: Desk, outbox: Outbox):
        claim = desk.start(webhook_url=URL, owner="me", metadata={"a": "1"})
        started = desk.ledger.get(claim.job.id)
        desk.clock.advance(2)
        desk.ledger.succeed(claim, a_result(claim), {"denoise": 1.5})
        ended = desk.ledger.get(claim.job.id)
        assert [delivery.job for delivery in take_all(outbox)] == [started, ended]

    def test_of_a_job_that_is_deleted_meanwhile_is_still_told(self, desk: Desk, outbox: Outbox):
        desk.ledger.delete(desk.submit(webhook_url=URL).id)
        assert events(outbox) == ["cancelled"]


class TestADelivery:
    def test_is_with_one_taker_until_its_lease_is_over(self, desk: Desk, outbox: Outbox):
        desk.start(webhook_url=URL)
        first = outbox.take(60)
        assert (first.attempt, outbox.take(60)) == (1, None)
        desk.clock.advance(60)
        assert (outbox.take(60).id, outbox.take(60)) == (first.id, None)

    def test_that_is_settled_does_not_come_again(self, redis: Redis, desk: Desk, outbox: Outbox):
        desk.start(webhook_url=URL)
        delivery = outbox.take(60)
        outbox.settle(delivery, attempt(delivery), None)
        desk.clock.advance(10**6)
        assert outbox.take(60) is None
        assert not keys_of(redis, "longcat:delivery:*")

    def test_that_failed_is_due_again_when_it_was_said(self, desk: Desk, outbox: Outbox):
        desk.start(webhook_url=URL)
        delivery = outbox.take(60)
        outbox.settle(delivery, attempt(delivery, "failed", status_code=500), 300)
        desk.clock.advance(299)
        assert outbox.take(60) is None
        desk.clock.advance(1)
        again = outbox.take(60)
        assert (again.id, again.at, again.attempt) == (delivery.id, delivery.at, 2)

    def test_that_is_settled_twice_since_a_reply_was_lost_is_noted_once(self, desk: Desk, outbox: Outbox):
        desk.start(webhook_url=URL)
        delivery = outbox.take(60)
        for _ in range(2):
            outbox.settle(delivery, attempt(delivery, "failed", status_code=500), 300)
        assert len(outbox.log(delivery.job.id)) == 1

    def test_of_a_taker_who_was_too_slow_is_settled_by_the_next(self, desk: Desk, outbox: Outbox):
        desk.start(webhook_url=URL)
        slow = outbox.take(60)
        desk.clock.advance(60)
        quick = outbox.take(60)
        outbox.settle(slow, attempt(slow, "failed"), 5)
        outbox.settle(quick, attempt(quick), None)
        assert [entry.attempt for entry in outbox.log(quick.job.id)] == [2]

    def test_is_noted_with_its_job_and_goes_with_it(self, redis: Redis, desk: Desk, outbox: Outbox):
        claim = desk.start(webhook_url=URL)
        delivery = outbox.take(60)
        outbox.settle(delivery, attempt(delivery, "failed", error="the host is too slow"), 5)
        (entry,) = outbox.log(claim.job.id)
        assert (entry.event, entry.outcome, entry.error) == ("started", "failed", "the host is too slow")
        assert (entry.next_at - entry.at).total_seconds() == 5
        desk.ledger.acknowledge_cancel(claim)
        desk.ledger.delete(claim.job.id)
        delivery = outbox.take(60)
        outbox.settle(delivery, attempt(delivery), None)
        assert outbox.log(claim.job.id) == []
        assert not keys_of(redis, "longcat:deliveries:*")
