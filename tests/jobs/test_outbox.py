"""Webhooks wait in the outbox from the very step that changes the job until they are settled."""

from __future__ import annotations

import json

import pytest
from redis import Redis

from jobs.errors import GenerationFailed
from jobs.store.outbox import Attempt, Backlog, Delivery, Outbox
from tests.jobs.examples import Desk, a_result, keys_of

URL = "https://example.com/hook"


@pytest.fixture
def outbox(redis: Redis, desk: Desk) -> Outbox:
    return Outbox(redis, desk.clock)


def take_all(outbox: Outbox, max_per_owner: int = 4, max_per_host: int = 2) -> list[Delivery]:
    return list(iter(lambda: outbox.take(60, max_per_owner, max_per_host), None))


def fail(outbox: Outbox, delivery: Delivery, retry_s: float | None = 5.0) -> None:
    """Settle a delivery whose host did not answer."""
    outbox.settle(delivery, attempt(delivery, "failed", error="the host is too slow"), retry_s)


def tell(desk: Desk, owner: str, host: str, count: int = 1) -> None:
    """Have so many webhooks of an owner to send to a host."""
    for _ in range(count):
        job = desk.submit(owner=owner, webhook_url=f"https://{host}/hook")
        desk.job_store.client.cancel(job.id)


def events(outbox: Outbox) -> list[str]:
    return [delivery.event for delivery in take_all(outbox)]


def attempt(delivery: Delivery, outcome="delivered", **fields) -> Attempt:
    return Attempt(event=delivery.event, attempt=delivery.attempt, outcome=outcome, **fields)


class TestWhatIsTold:
    def test_is_the_start_and_the_end(self, desk: Desk, outbox: Outbox):
        claim = desk.start(webhook_url=URL)
        desk.clock.advance(1)
        desk.job_store.holder.begin_upload(claim)
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        assert events(outbox) == ["started", "succeeded"]

    def test_is_a_failure_and_a_cancellation_too(self, desk: Desk, outbox: Outbox):
        desk.job_store.client.cancel(desk.submit(webhook_url=URL).id)
        desk.clock.advance(1)
        desk.job_store.holder.fail(
            desk.start(webhook_url=URL, webhook_events=("failed",)), GenerationFailed("no"), {}
        )
        assert events(outbox) == ["cancelled", "failed"]

    def test_is_nothing_without_a_url(self, desk: Desk, outbox: Outbox):
        claim = desk.start()
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        assert events(outbox) == []

    def test_is_only_what_is_wanted(self, desk: Desk, outbox: Outbox):
        for _ in range(2):
            claim = desk.start(webhook_url=URL, webhook_events=("succeeded", "cancelled"))
            desk.job_store.holder.succeed(claim, a_result(claim), {})
        assert events(outbox) == ["succeeded", "succeeded"]

    def test_is_one_start_however_often_a_job_is_begun(self, desk: Desk, outbox: Outbox):
        claim = desk.start(webhook_url=URL)
        desk.job_store.holder.requeue(claim, crashed=False)
        desk.claim()
        assert events(outbox) == ["started"]

    def test_is_told_once_though_replies_are_lost(self, desk: Desk, outbox: Outbox):
        claim = desk.start(webhook_url=URL, webhook_events=("succeeded",))
        for _ in range(3):
            desk.job_store.holder.succeed(claim, a_result(claim), {})
        assert events(outbox) == ["succeeded"]

    def test_is_the_job_as_it_was_then(self, desk: Desk, outbox: Outbox):
        claim = desk.start(webhook_url=URL, owner="me", metadata={"a": "1"})
        started = desk.job_store.client.get(claim.job.id)
        desk.clock.advance(2)
        desk.job_store.holder.succeed(claim, a_result(claim), {"denoise": 1.5})
        ended = desk.job_store.client.get(claim.job.id)
        assert [delivery.job for delivery in take_all(outbox)] == [started, ended]

    def test_of_a_deleted_job_is_not_told(self, desk: Desk, outbox: Outbox):
        desk.job_store.client.delete(desk.submit(webhook_url=URL).id)
        assert events(outbox) == []


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
        desk.job_store.holder.confirm_cancel(claim)
        desk.job_store.client.delete(claim.job.id)
        assert outbox.log(claim.job.id) == []
        assert outbox.take(60) is None
        assert not keys_of(redis, "longcat:deliver*")

    def test_whose_job_is_deleted_while_it_is_sent_is_settled_without_a_trace(
        self, redis: Redis, desk: Desk, outbox: Outbox
    ):
        claim = desk.start(webhook_url=URL)
        delivery = outbox.take(60)
        desk.job_store.holder.confirm_cancel(claim)
        desk.job_store.client.delete(claim.job.id)
        before = {key for key in keys_of(redis) if "in_flight" not in key}
        outbox.settle(delivery, attempt(delivery, "failed", status_code=500), 5)
        assert keys_of(redis) == before
        desk.clock.advance(10**6)
        assert outbox.take(60) is None

    def test_holds_no_copy_of_the_order(self, redis: Redis, desk: Desk):
        claim = desk.start(webhook_url=URL, metadata={"a": "planted"})
        desk.job_store.holder.succeed(claim, a_result(claim), {})
        stored = [redis.hgetall(key) for key in keys_of(redis, "longcat:delivery:*")]
        assert len(stored) == 2
        assert "red ball" not in str(stored)
        assert "planted" not in str(stored)


class TestOwnersAndHosts:
    def test_take_turns(self, desk: Desk, outbox: Outbox):
        tell(desk, "a", "one", 2)
        tell(desk, "a", "two", 2)
        tell(desk, "b", "one", 2)
        turns = [(taken.job.owner, taken.job.webhook_url[8:11]) for taken in take_all(outbox, 9, 9)]
        assert turns == [("a", "one"), ("b", "one"), ("a", "two"), ("b", "one"), ("a", "one"), ("a", "two")]

    def test_with_a_new_delivery_wait_for_one_turn_of_each_other_owner(self, desk: Desk, outbox: Outbox):
        for owner in "abc":
            tell(desk, owner, "tarpit", 10)
        for _ in range(7):
            outbox.take(60, 99, 99)
        tell(desk, "late", "quick")
        assert "late" in [outbox.take(60, 99, 99).job.owner for _ in range(4)]

    def test_have_a_bounded_number_of_deliveries_in_flight(self, desk: Desk, outbox: Outbox):
        for host in ("one", "two", "three"):
            tell(desk, "a", host, 5)
        taken = take_all(outbox, 3, 2)
        assert len(taken) == 3
        tell(desk, "b", "one", 5)
        assert [t.job.owner for t in take_all(outbox, 3, 2)] == ["b"]
        outbox.settle(taken[0], attempt(taken[0], status_code=200), None)
        assert len(take_all(outbox, 3, 2)) == 1

    def test_lose_a_place_in_flight_when_the_lease_is_over(self, desk: Desk, outbox: Outbox):
        tell(desk, "a", "tarpit", 3)
        assert len(take_all(outbox)) == 2
        desk.clock.advance(60)
        assert len(take_all(outbox)) == 2

    def test_keep_a_place_in_flight_while_a_delivery_of_a_deleted_job_is_sent(
        self, desk: Desk, outbox: Outbox
    ):
        tell(desk, "a", "tarpit", 2)
        sent = outbox.take(60, 1)
        desk.job_store.client.delete(sent.job.id)
        assert outbox.take(60, 1) is None
        fail(outbox, sent)
        assert outbox.take(60, 1) is not None

    @pytest.mark.parametrize("waiting", [10, 400])
    def test_cost_the_same_to_take_from_however_much_waits(
        self, redis: Redis, desk: Desk, outbox: Outbox, waiting
    ):
        tell(desk, "a", "tarpit", waiting)
        take_all(outbox)
        tell(desk, "b", "quick")
        before = calls(redis)
        assert outbox.take(60).job.owner == "b"
        assert calls(redis) - before < 60


def calls(redis: Redis) -> int:
    """How many commands Redis ran, those of scripts included."""
    return sum(stats["calls"] for stats in redis.info("commandstats").values())


class TestAHostThatDoesNotAnswer:
    def test_is_paused_and_then_probed_with_one_delivery_at_a_time(self, desk: Desk, outbox: Outbox):
        pause(desk, outbox, "tarpit")
        tell(desk, "b", "tarpit", 3)
        assert outbox.take(60) is None
        assert outbox.backlog().num_paused_hosts == 1
        desk.clock.advance(10)
        probe = outbox.take(60)
        assert probe is not None
        assert outbox.take(60) is None
        outbox.settle(probe, attempt(probe, status_code=500), None)
        assert outbox.backlog().num_paused_hosts == 0
        assert len(take_all(outbox)) == 2

    def test_is_paused_for_longer_each_time(self, desk: Desk, outbox: Outbox):
        pause(desk, outbox, "tarpit")
        tell(desk, "b", "tarpit", 9)
        pauses = []
        for _ in range(8):
            seconds = 0
            while (probe := outbox.take(60)) is None:
                desk.clock.advance(5)
                seconds += 5
            pauses.append(seconds)
            fail(outbox, probe, 10**6)
        assert pauses == [10, 20, 40, 80, 160, 320, 600, 600]

    def test_uses_up_no_attempt_of_what_waits(self, desk: Desk, outbox: Outbox):
        pause(desk, outbox, "tarpit")
        tell(desk, "b", "tarpit")
        for _ in range(3):
            assert outbox.take(60) is None
        desk.clock.advance(10)
        assert outbox.take(60).attempt == 1

    def test_does_not_hold_up_other_hosts_of_its_owner(self, desk: Desk, outbox: Outbox):
        pause(desk, outbox, "tarpit", owner="a")
        tell(desk, "a", "tarpit", 3)
        tell(desk, "a", "quick")
        assert [taken.job.webhook_url for taken in take_all(outbox)] == ["https://quick/hook"]

    def test_is_the_same_in_capitals_and_not_on_another_port(self, desk: Desk, outbox: Outbox):
        pause(desk, outbox, "tarpit")
        tell(desk, "b", "TARPIT")
        assert outbox.take(60) is None
        tell(desk, "b", "tarpit:8443")
        assert outbox.take(60) is not None

    def test_that_answers_errors_is_not_paused(self, desk: Desk, outbox: Outbox):
        tell(desk, "a", "broken", 20)
        for _ in range(20):
            delivery = outbox.take(60)
            outbox.settle(delivery, attempt(delivery, "failed", status_code=500), 300)
        assert outbox.backlog().num_paused_hosts == 0

    def test_is_counted_once_though_a_reply_was_lost(self, desk: Desk, outbox: Outbox):
        tell(desk, "a", "tarpit")
        delivery = outbox.take(60)
        for _ in range(9):
            fail(outbox, delivery)
        assert outbox.backlog().num_paused_hosts == 0


def pause(desk: Desk, outbox: Outbox, host: str, owner: str = "z") -> None:
    """Have a host fail as often as it takes until it is paused, and leave no other delivery."""
    for _ in range(5):
        tell(desk, owner, host)
        fail(outbox, outbox.take(60), None)


class TestTheBacklog:
    def test_counts_what_waits_and_since_when(self, desk: Desk, outbox: Outbox):
        assert outbox.backlog() == Backlog(0, 0.0, 0)
        tell(desk, "a", "one")
        desk.clock.advance(7)
        tell(desk, "a", "one")
        assert outbox.backlog() == Backlog(2, 7.0, 0)
        for delivery in take_all(outbox):
            outbox.settle(delivery, attempt(delivery, status_code=200), None)
        assert outbox.backlog() == Backlog(0, 0.0, 0)


class TestWhatAnOlderReleaseWrote:
    def write(self, redis: Redis, desk: Desk) -> str:
        """A delivery as it was stored before there were turns: with a copy of the record."""
        job = desk.start(webhook_url=URL, webhook_events=("succeeded",), owner="a").job
        record = {k.decode(): v.decode() for k, v in redis.hgetall(f"longcat:job:{job.id}").items()}
        name = f"{job.id}-started"
        redis.hset(
            f"longcat:delivery:{name}",
            mapping={
                "event": "started",
                "at_ms": desk.clock.now_ms,
                "attempt": 0,
                "record": json.dumps(record),
            },
        )
        redis.zadd("longcat:outbox", {name: desk.clock.now_ms})
        return job.id

    def test_is_delivered(self, redis: Redis, desk: Desk, outbox: Outbox):
        job_id = self.write(redis, desk)
        assert outbox.backlog().num_deliveries == 1
        delivery = outbox.take(60)
        assert (delivery.job, delivery.event, delivery.attempt) == (
            desk.job_store.client.get(job_id),
            "started",
            1,
        )
        outbox.settle(delivery, attempt(delivery, status_code=200), None)
        assert outbox.backlog().num_deliveries == 0
        assert len(outbox.log(job_id)) == 1

    def test_is_removed_with_its_job(self, redis: Redis, desk: Desk, outbox: Outbox):
        job_id = self.write(redis, desk)
        desk.job_store.client.cancel(job_id)
        desk.lose_lease()
        desk.job_store.client.delete(job_id)
        assert not keys_of(redis, "longcat:delivery:*")
        assert outbox.take(60) is None

    def test_without_its_job_is_dropped(self, redis: Redis, desk: Desk, outbox: Outbox):
        redis.delete(f"longcat:job:{self.write(redis, desk)}")
        assert outbox.take(60) is None
        assert not keys_of(redis, "longcat:delivery:*")


def test_nothing_is_left_of_owners_and_hosts_that_have_no_delivery(redis: Redis, desk: Desk, outbox: Outbox):
    tell(desk, "a", "one", 2)
    tell(desk, "b", "two")
    for delivery in take_all(outbox):
        outbox.settle(delivery, attempt(delivery, status_code=200), None)
    assert keys_of(redis, "longcat:outbox*") == {"longcat:outbox:turns"}
