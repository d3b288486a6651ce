"""Event streams find out which of many jobs have changed."""

from __future__ import annotations

from redis import Redis

from jobs.store.events import changed_jobs, newest_events
from tests.jobs.examples import ExampleStore


def test_newest_event_of_each_job_that_has_one_is_found(redis: Redis, store: ExampleStore):
    jobs = [store.submit() for _ in range(2)]
    store.claim()
    newest = {job.id: store.client.events(job.id)[-1].id for job in jobs}
    assert newest_events(redis, [*newest, "nothing"]) == newest


def test_changed_jobs_are_those_with_later_events_than_were_seen(redis: Redis, store: ExampleStore):
    changed, unchanged = store.submit(), store.submit()
    seen = newest_events(redis, [changed.id, unchanged.id])
    store.client.cancel(changed.id)
    assert changed_jobs(redis, seen.items()) == {changed.id}
    assert changed_jobs(redis, []) == set()


def test_older_event_counts_if_two_of_a_job_were_seen(redis: Redis, store: ExampleStore):
    job = store.submit()
    store.client.cancel(job.id)
    older, newer = ((job.id, event.id) for event in store.client.events(job.id))
    for seen in ([older, newer], [newer, older]):
        assert changed_jobs(redis, seen) == {job.id}
    assert changed_jobs(redis, [newer]) == set()
