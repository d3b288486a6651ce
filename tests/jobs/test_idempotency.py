"""Idempotency keys in Redis: who has one, until when, and what a late holder can still do."""

from __future__ import annotations

import pytest

from jobs.errors import KeyReused
from jobs.store.idempotency import KEEP_S, IdempotencyKeys
from tests.jobs.examples import LATE_UPLOAD_S, a_submission


@pytest.fixture
def keys(redis, clock):
    return IdempotencyKeys(redis, clock)


def test_a_new_key_is_given_an_id_and_no_job(keys):
    hold = keys.hold("", "k", "f")
    assert hold.job_id
    assert hold.job is None


def test_who_comes_with_the_same_request_goes_on_under_the_same_id(keys):
    assert keys.hold("", "k", "f") == keys.hold("", "k", "f")


def test_who_comes_with_another_request_is_refused(keys):
    keys.hold("", "k", "f")
    with pytest.raises(KeyReused) as refused:
        keys.hold("", "k", "g")
    assert refused.value.field == "Idempotency-Key"


def test_keys_of_different_owners_are_different(keys):
    assert keys.hold("a", "k", "f").job_id != keys.hold("b", "k", "g").job_id
    assert keys.hold("a", "bk", "f").job_id != keys.hold("ab", "k", "f").job_id


def test_a_key_that_made_no_job_lapses(keys, redis):
    hold = keys.hold("", "k", "f")
    assert 0 < redis.pttl(hold.name) <= KEEP_S * 1000


def test_a_submitted_job_is_given_to_who_comes_again(keys, job_store):
    hold = keys.hold("", "k", "f")
    job = job_store.client.submit(a_submission(id=hold.job_id, hold=hold))
    assert keys.hold("", "k", "f").job == job
    with pytest.raises(KeyReused):
        keys.hold("", "k", "g")


def test_submitting_twice_is_submitting_once(keys, job_store):
    hold = keys.hold("", "k", "f")
    first, second = (job_store.client.submit(a_submission(id=hold.job_id, hold=hold)) for _ in range(2))
    assert first == second
    assert len(job_store.client.page()) == 1


def test_a_released_key_is_free(keys):
    hold = keys.hold("", "k", "f")
    keys.release(hold)
    assert keys.hold("", "k", "g").job_id != hold.job_id


def test_a_key_whose_job_is_there_is_not_released(keys, job_store):
    hold = keys.hold("", "k", "f")
    job_store.client.submit(a_submission(id=hold.job_id, hold=hold))
    keys.release(hold)
    assert keys.hold("", "k", "f").job is not None


def test_a_key_that_somebody_else_has_by_now_is_not_released(keys):
    hold = keys.hold("", "k", "f")
    keys.release(hold)
    other = keys.hold("", "k", "g")
    keys.release(hold)
    assert keys.hold("", "k", "g") == other


def test_a_submission_binds_a_key_that_was_released_meanwhile(keys, job_store):
    """Two came with the same request; the one failed, the other came through."""
    hold = keys.hold("", "k", "f")
    keys.release(hold)
    job = job_store.client.submit(a_submission(id=hold.job_id, hold=hold))
    assert keys.hold("", "k", "f").job == job


def test_a_submission_is_refused_whose_key_went_to_another_request(keys, job_store):
    late = keys.hold("", "k", "f")
    keys.release(late)
    other = keys.hold("", "k", "g")
    with pytest.raises(KeyReused):
        job_store.client.submit(a_submission(id=late.job_id, hold=late))
    job = job_store.client.submit(a_submission(id=other.job_id, hold=other))
    assert job_store.client.page() == [job]


def test_a_key_goes_with_its_job(keys, job_store, redis):
    hold = keys.hold("", "k", "f")
    job_store.client.submit(a_submission(id=hold.job_id, hold=hold))
    assert redis.pttl(hold.name) == -1
    job_store.client.delete(hold.job_id)
    assert not redis.exists(hold.name)


def test_a_key_goes_when_its_job_expires(keys, job_store, clock, redis):
    hold = keys.hold("", "k", "f")
    job = job_store.client.submit(a_submission(id=hold.job_id, hold=hold))
    ended = job_store.client.cancel(job.id)
    clock.advance((ended.expires_at - ended.finished_at).total_seconds() + 1)
    job_store.maintenance.sweep()
    assert not redis.exists(hold.name)


def test_a_key_whose_files_are_being_removed_is_given_another_id(keys, job_store, clock):
    hold = keys.hold("", "k", "f")
    job_store.client.reserve(hold.job_id)
    clock.advance(LATE_UPLOAD_S)
    again = keys.hold("", "k", "f")
    assert again.job_id != hold.job_id
    assert job_store.client.submit(a_submission(id=again.job_id, hold=again)).status == "queued"
