"""Webhooks are written in the step that changes the job, and stay until they are settled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
from redis import Redis

from jobs.errors import GenerationFailed
from jobs.store.outbox import Attempt, Backlog, Delivery, Outbox
from tests.jobs.examples import ExampleStore, a_result, keys_of

URL = "https://example.com/hook"
MOST_DELIVERIES = 1000  # of any test


@pytest.fixture
def outbox(redis: Redis, store: ExampleStore) -> Outbox:
    return Outbox(redis, store.clock)


def take(outbox: Outbox, max_per_owner: int = 4, max_per_host: int = 2) -> Delivery:
    """Lease the next delivery, which must be due."""
    delivery = outbox.take(60, max_per_owner, max_per_host)
    assert delivery is not None
    return delivery


def take_all(outbox: Outbox, max_per_owner: int = 4, max_per_host: int = 2) -> list[Delivery]:
    taken: list[Delivery] = []
    while delivery := outbox.take(60, max_per_owner, max_per_host):
        taken.append(delivery)
        assert len(taken) <= MOST_DELIVERIES, "a delivery in flight is taken again"
    return taken


def fail(outbox: Outbox, delivery: Delivery, retry_s: float | None = 5.0) -> None:
    """Settle a delivery whose host did not respond."""
    outbox.settle(delivery, attempt(delivery, "failed", error="the host is too slow"), retry_s)


def send_webhooks(store: ExampleStore, owner: str, host: str, count: int = 1) -> None:
    """Write webhooks of an owner to a host."""
    for _ in range(count):
        job = store.submit(owner=owner, webhook_url=f"https://{host}/hook")
        store.client.cancel(job.id)


def events(outbox: Outbox) -> list[str]:
    return [delivery.event for delivery in take_all(outbox)]


def attempt(delivery: Delivery, outcome="delivered", **fields) -> Attempt:
    return Attempt(event=delivery.event, attempt=delivery.attempt, outcome=outcome, **fields)


class TestWebhook:
    def test_is_sent_at_start_and_end(self, store: ExampleStore, outbox: Outbox):
        claim = store.start(webhook_url=URL)
        store.clock.advance(1)
        store.holder.begin_upload(claim)
        store.holder.succeed(claim, a_result(claim), {})
        assert events(outbox) == ["started", "succeeded"]

    def test_is_sent_for_failure_and_cancellation(self, store: ExampleStore, outbox: Outbox):
        store.client.cancel(store.submit(webhook_url=URL).id)
        store.clock.advance(1)
        store.holder.fail(
            store.start(webhook_url=URL, webhook_events=("failed",)), GenerationFailed("no"), {}
        )
        assert events(outbox) == ["cancelled", "failed"]

    def test_is_not_sent_without_a_url(self, store: ExampleStore, outbox: Outbox):
        claim = store.start()
        store.holder.succeed(claim, a_result(claim), {})
        assert events(outbox) == []

    def test_is_only_sent_for_subscribed_events(self, store: ExampleStore, outbox: Outbox):
        for _ in range(2):
            claim = store.start(webhook_url=URL, webhook_events=("succeeded", "cancelled"))
            store.holder.succeed(claim, a_result(claim), {})
        assert events(outbox) == ["succeeded", "succeeded"]

    def test_is_sent_for_every_event_if_the_record_names_none(
        self, redis: Redis, store: ExampleStore, outbox: Outbox
    ):
        job = store.submit(webhook_url=URL)
        redis.hdel(f"longcat:job:{job.id}", "webhook_events")
        store.client.cancel(job.id)
        assert events(outbox) == ["cancelled"]

    def test_is_one_start_for_several_attempts(self, store: ExampleStore, outbox: Outbox):
        claim = store.start(webhook_url=URL)
        store.holder.requeue(claim, crashed=False)
        store.claim()
        assert events(outbox) == ["started"]

    def test_is_sent_once_despite_lost_replies(self, store: ExampleStore, outbox: Outbox):
        claim = store.start(webhook_url=URL, webhook_events=("succeeded",))
        for _ in range(3):
            store.holder.succeed(claim, a_result(claim), {})
        assert events(outbox) == ["succeeded"]

    def test_shows_the_job_as_it_was_at_the_event(self, store: ExampleStore, outbox: Outbox):
        claim = store.start(webhook_url=URL, owner="me", metadata={"a": "1"})
        started = store.client.get(claim.job.id)
        store.clock.advance(2)
        store.holder.succeed(claim, a_result(claim), {"denoise": 1.5})
        ended = store.client.get(claim.job.id)
        assert [delivery.job for delivery in take_all(outbox)] == [started, ended]

    def test_deleted_job_sends_no_webhook(self, store: ExampleStore, outbox: Outbox):
        store.client.delete(store.submit(webhook_url=URL).id)
        assert events(outbox) == []


class TestDelivery:
    def test_is_leased_by_one_consumer_at_a_time(self, store: ExampleStore, outbox: Outbox):
        store.start(webhook_url=URL)
        first = take(outbox)
        assert (first.attempt, outbox.take(60)) == (1, None)
        store.clock.advance(60)
        assert (take(outbox).id, outbox.take(60)) == (first.id, None)

    def test_is_not_repeated_once_it_is_settled(self, redis: Redis, store: ExampleStore, outbox: Outbox):
        store.start(webhook_url=URL)
        delivery = take(outbox)
        outbox.settle(delivery, attempt(delivery), None)
        store.clock.advance(10**6)
        assert outbox.take(60) is None
        assert not keys_of(redis, "longcat:delivery:*")

    def test_is_due_again_after_the_retry_delay(self, store: ExampleStore, outbox: Outbox):
        store.start(webhook_url=URL)
        delivery = take(outbox)
        outbox.settle(delivery, attempt(delivery, "failed", status_code=500), 300)
        store.clock.advance(299)
        assert outbox.take(60) is None
        store.clock.advance(1)
        again = take(outbox)
        assert (again.id, again.at, again.attempt) == (delivery.id, delivery.at, 2)

    def test_is_logged_once_despite_a_lost_reply(self, store: ExampleStore, outbox: Outbox):
        store.start(webhook_url=URL)
        delivery = take(outbox)
        for _ in range(2):
            outbox.settle(delivery, attempt(delivery, "failed", status_code=500), 300)
        assert len(outbox.log(delivery.job.id)) == 1

    def test_is_settled_by_the_consumer_that_leased_it_last(self, store: ExampleStore, outbox: Outbox):
        store.start(webhook_url=URL)
        slow = take(outbox)
        store.clock.advance(60)
        quick = take(outbox)
        outbox.settle(slow, attempt(slow, "failed"), 5)
        outbox.settle(quick, attempt(quick), None)
        assert [entry.attempt for entry in outbox.log(quick.job.id)] == [2]

    def test_is_logged_and_removed_with_its_job(self, redis: Redis, store: ExampleStore, outbox: Outbox):
        claim = store.start(webhook_url=URL)
        delivery = take(outbox)
        outbox.settle(delivery, attempt(delivery, "failed", error="the host is too slow"), 5)
        (entry,) = outbox.log(claim.job.id)
        assert (entry.event, entry.outcome, entry.error) == ("started", "failed", "the host is too slow")
        assert entry.at == datetime.fromtimestamp(store.clock.now_ms / 1000, UTC)
        assert entry.next_at == entry.at + timedelta(seconds=5)
        store.holder.confirm_cancel(claim)
        store.client.delete(claim.job.id)
        assert outbox.log(claim.job.id) == []
        assert outbox.take(60) is None
        assert not keys_of(redis, "longcat:deliver*")

    def test_of_a_job_deleted_meanwhile_is_settled_without_a_trace(
        self, redis: Redis, store: ExampleStore, outbox: Outbox
    ):
        claim = store.start(webhook_url=URL)
        delivery = take(outbox)
        store.holder.confirm_cancel(claim)
        store.client.delete(claim.job.id)
        before = {key for key in keys_of(redis) if "in_flight" not in key}
        outbox.settle(delivery, attempt(delivery, "failed", status_code=500), 5)
        assert keys_of(redis) == before
        store.clock.advance(10**6)
        assert outbox.take(60) is None

    def test_holds_no_copy_of_the_order(self, redis: Redis, store: ExampleStore):
        claim = store.start(webhook_url=URL, metadata={"a": "planted"})
        store.holder.succeed(claim, a_result(claim), {})
        stored = [redis.hgetall(key) for key in keys_of(redis, "longcat:delivery:*")]
        assert len(stored) == 2
        assert "red ball" not in str(stored)
        assert "planted" not in str(stored)


class TestOwnersAndHosts:
    def test_take_turns(self, store: ExampleStore, outbox: Outbox):
        send_webhooks(store, "a", "one", 2)
        send_webhooks(store, "a", "two", 2)
        send_webhooks(store, "b", "one", 2)
        turns = [
            (taken.job.owner, urlsplit(taken.job.webhook_url).hostname) for taken in take_all(outbox, 9, 9)
        ]
        assert turns == [("a", "one"), ("b", "one"), ("a", "two"), ("b", "one"), ("a", "one"), ("a", "two")]

    def test_new_delivery_waits_for_one_turn_of_each_other_owner(self, store: ExampleStore, outbox: Outbox):
        for owner in "abc":
            send_webhooks(store, owner, "tarpit", 10)
        for _ in range(7):
            outbox.take(60, 99, 99)
        send_webhooks(store, "late", "quick")
        assert "late" in [take(outbox, 99, 99).job.owner for _ in range(4)]

    def test_have_a_bounded_number_of_deliveries_in_flight(self, store: ExampleStore, outbox: Outbox):
        for host in ("one", "two", "three"):
            send_webhooks(store, "a", host, 5)
        taken = take_all(outbox, 3, 2)
        assert len(taken) == 3
        send_webhooks(store, "b", "one", 5)
        assert [t.job.owner for t in take_all(outbox, 3, 2)] == ["b"]
        outbox.settle(taken[0], attempt(taken[0], status_code=200), None)
        assert len(take_all(outbox, 3, 2)) == 1

    def test_lose_a_place_in_flight_when_the_lease_is_over(self, store: ExampleStore, outbox: Outbox):
        send_webhooks(store, "a", "tarpit", 3)
        assert len(take_all(outbox)) == 2
        store.clock.advance(60)
        assert len(take_all(outbox)) == 2

    def test_keep_a_place_in_flight_while_a_delivery_of_a_deleted_job_is_sent(
        self, store: ExampleStore, outbox: Outbox
    ):
        send_webhooks(store, "a", "tarpit", 2)
        sent = take(outbox, 1)
        store.client.delete(sent.job.id)
        assert outbox.take(60, 1) is None
        fail(outbox, sent)
        assert outbox.take(60, 1) is not None

    @pytest.mark.parametrize("waiting", [10, 400])
    def test_take_cost_does_not_grow_with_the_backlog(
        self, redis: Redis, store: ExampleStore, outbox: Outbox, waiting
    ):
        send_webhooks(store, "a", "tarpit", waiting)
        take_all(outbox)
        send_webhooks(store, "b", "quick")
        before = calls(redis)
        assert take(outbox).job.owner == "b"
        assert calls(redis) - before < 60


def calls(redis: Redis) -> int:
    """Return how many commands Redis has run, including those in scripts."""
    return sum(stats["calls"] for stats in redis.info("commandstats").values())


class TestUnresponsiveHost:
    def test_is_paused_and_then_probed_with_one_delivery_at_a_time(self, store: ExampleStore, outbox: Outbox):
        pause(store, outbox, "tarpit")
        send_webhooks(store, "b", "tarpit", 3)
        assert outbox.take(60) is None
        assert outbox.backlog().num_paused_hosts == 1
        store.clock.advance(10)
        probe = take(outbox)
        assert outbox.take(60) is None
        outbox.settle(probe, attempt(probe, status_code=500), None)
        assert outbox.backlog().num_paused_hosts == 0
        assert len(take_all(outbox)) == 2

    def test_is_paused_for_longer_each_time(self, store: ExampleStore, outbox: Outbox):
        pause(store, outbox, "tarpit")
        send_webhooks(store, "b", "tarpit", 9)
        pauses = []
        for _ in range(8):
            seconds = 0
            while (probe := outbox.take(60)) is None:
                store.clock.advance(5)
                seconds += 5
            pauses.append(seconds)
            fail(outbox, probe, 10**6)
        assert pauses == [10, 20, 40, 80, 160, 320, 600, 600]

    def test_stays_paused_when_another_host_fails(self, store: ExampleStore, outbox: Outbox):
        for host in ("tarpit", "pit"):
            pause(store, outbox, host)
        assert outbox.backlog().num_paused_hosts == 2

    def test_uses_up_no_attempt_of_waiting_deliveries(self, store: ExampleStore, outbox: Outbox):
        pause(store, outbox, "tarpit")
        send_webhooks(store, "b", "tarpit")
        for _ in range(3):
            assert outbox.take(60) is None
        store.clock.advance(10)
        assert take(outbox).attempt == 1

    def test_does_not_hold_up_other_hosts_of_its_owner(self, store: ExampleStore, outbox: Outbox):
        pause(store, outbox, "tarpit", owner="a")
        send_webhooks(store, "a", "tarpit", 3)
        send_webhooks(store, "a", "quick")
        assert [taken.job.webhook_url for taken in take_all(outbox)] == ["https://quick/hook"]

    def test_is_the_same_in_capitals_and_not_on_another_port(self, store: ExampleStore, outbox: Outbox):
        pause(store, outbox, "tarpit")
        send_webhooks(store, "b", "TARPIT")
        assert outbox.take(60) is None
        send_webhooks(store, "b", "tarpit:8443")
        assert outbox.take(60) is not None

    def test_is_not_paused_for_error_responses(self, store: ExampleStore, outbox: Outbox):
        send_webhooks(store, "a", "broken", 20)
        for _ in range(20):
            delivery = take(outbox)
            outbox.settle(delivery, attempt(delivery, "failed", status_code=500), 300)
        assert outbox.backlog().num_paused_hosts == 0

    def test_is_counted_once_despite_a_lost_reply(self, store: ExampleStore, outbox: Outbox):
        send_webhooks(store, "a", "tarpit")
        delivery = take(outbox)
        for _ in range(9):
            fail(outbox, delivery)
        assert outbox.backlog().num_paused_hosts == 0


def pause(store: ExampleStore, outbox: Outbox, host: str, owner: str = "z") -> None:
    """Make a host fail until it is paused, and leave no delivery to it."""
    for _ in range(5):
        send_webhooks(store, owner, host)
        fail(outbox, take(outbox), None)


class TestBacklog:
    def test_counts_deliveries_and_the_age_of_the_oldest(self, store: ExampleStore, outbox: Outbox):
        assert outbox.backlog() == Backlog(0, 0.0, 0)
        send_webhooks(store, "a", "one")
        store.clock.advance(7)
        send_webhooks(store, "a", "one")
        assert outbox.backlog() == Backlog(2, 7.0, 0)
        for delivery in take_all(outbox):
            outbox.settle(delivery, attempt(delivery, status_code=200), None)
        assert outbox.backlog() == Backlog(0, 0.0, 0)


def test_owners_and_hosts_without_deliveries_leave_no_keys(redis: Redis, store: ExampleStore, outbox: Outbox):
    send_webhooks(store, "a", "one", 2)
    send_webhooks(store, "b", "two")
    for delivery in take_all(outbox):
        outbox.settle(delivery, attempt(delivery, status_code=200), None)
    assert keys_of(redis, "longcat:outbox*") == {"longcat:outbox:turns"}
