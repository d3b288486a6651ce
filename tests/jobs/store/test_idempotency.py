"""Idempotency keys belong to one request, and live as long as its job."""

from __future__ import annotations

import pytest

from jobs.errors import KeyReused
from jobs.store.idempotency import KEEP_S, IdempotencyKeys
from tests.jobs.examples import LATE_UPLOAD_S, a_submission


@pytest.fixture
def keys(redis, clock):
    return IdempotencyKeys(redis, clock)


def test_new_key_gets_an_id_and_no_job(keys):
    hold = keys.hold("", "k", "f")
    assert hold.job_id
    assert hold.job is None


def test_repeated_request_gets_the_same_id(keys):
    assert keys.hold("", "k", "f") == keys.hold("", "k", "f")


def test_key_of_another_request_is_refused(keys):
    keys.hold("", "k", "f")
    with pytest.raises(KeyReused) as refused:
        keys.hold("", "k", "g")
    assert refused.value.field == "Idempotency-Key"


def test_keys_of_different_owners_are_different(keys):
    assert keys.hold("a", "k", "f").job_id != keys.hold("b", "k", "g").job_id
    assert keys.hold("a", "bk", "f").job_id != keys.hold("ab", "k", "f").job_id


def test_unused_key_expires(keys, redis):
    hold = keys.hold("", "k", "f")
    assert 0 < redis.pttl(hold.name) <= KEEP_S * 1000


def test_repeated_request_gets_the_submitted_job(keys, store):
    hold = keys.hold("", "k", "f")
    job = store.client.submit(a_submission(id=hold.job_id, hold=hold))
    assert keys.hold("", "k", "f").job == job
    with pytest.raises(KeyReused):
        keys.hold("", "k", "g")


def test_submitting_twice_is_submitting_once(keys, store):
    hold = keys.hold("", "k", "f")
    first, second = (store.client.submit(a_submission(id=hold.job_id, hold=hold)) for _ in range(2))
    assert first == second
    assert len(store.client.page()) == 1


def test_released_key_is_free(keys):
    hold = keys.hold("", "k", "f")
    keys.release(hold)
    assert keys.hold("", "k", "g").job_id != hold.job_id


def test_key_of_a_submitted_job_is_not_released(keys, store):
    hold = keys.hold("", "k", "f")
    store.client.submit(a_submission(id=hold.job_id, hold=hold))
    keys.release(hold)
    assert keys.hold("", "k", "f").job is not None


def test_key_of_another_request_is_not_released(keys):
    hold = keys.hold("", "k", "f")
    keys.release(hold)
    other = keys.hold("", "k", "g")
    keys.release(hold)
    assert keys.hold("", "k", "g") == other


def test_submission_binds_a_key_that_was_released_meanwhile(keys, store):
    """Two came with the same request; the one failed, the other came through."""
    hold = keys.hold("", "k", "f")
    keys.release(hold)
    job = store.client.submit(a_submission(id=hold.job_id, hold=hold))
    assert keys.hold("", "k", "f").job == job


def test_submission_with_the_key_of_another_request_is_refused(keys, store):
    late = keys.hold("", "k", "f")
    keys.release(late)
    other = keys.hold("", "k", "g")
    with pytest.raises(KeyReused):
        store.client.submit(a_submission(id=late.job_id, hold=late))
    job = store.client.submit(a_submission(id=other.job_id, hold=other))
    assert store.client.page() == [job]


def test_key_is_removed_with_its_job(keys, store, redis):
    hold = keys.hold("", "k", "f")
    store.client.submit(a_submission(id=hold.job_id, hold=hold))
    assert redis.pttl(hold.name) == -1
    store.client.delete(hold.job_id)
    assert not redis.exists(hold.name)


def test_key_is_removed_when_its_job_expires(keys, store, clock, redis):
    hold = keys.hold("", "k", "f")
    job = store.client.submit(a_submission(id=hold.job_id, hold=hold))
    ended = store.client.cancel(job.id)
    clock.advance((ended.expires_at - ended.finished_at).total_seconds() + 1)
    store.maintenance.sweep()
    assert not redis.exists(hold.name)


def test_key_gets_another_id_while_its_files_are_removed(keys, store, clock):
    hold = keys.hold("", "k", "f")
    store.client.reserve(hold.job_id)
    clock.advance(LATE_UPLOAD_S)
    again = keys.hold("", "k", "f")
    assert again.job_id != hold.job_id
    assert store.client.submit(a_submission(id=again.job_id, hold=again)).status == "queued"
