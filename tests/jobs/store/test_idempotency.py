"""Idempotency keys belong to one request, and live as long as its job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.errors import KeyReused
from jobs.store.idempotency import KEEP_S, IdempotencyKeys
from tests.jobs.examples import LATE_UPLOAD_S, a_submission


@pytest.fixture
def keys(redis, clock):
    return IdempotencyKeys(redis, clock)


def test_new_key_gets_an_id_and_no_job(keys):
    reservation = keys.reserve("", "k", "f")
    assert reservation.job_id
    assert reservation.job is None


def test_repeated_request_gets_the_same_id(keys):
    assert keys.reserve("", "k", "f") == keys.reserve("", "k", "f")


def test_key_of_another_request_is_refused(keys):
    keys.reserve("", "k", "f")
    with pytest.raises(KeyReused) as refused:
        keys.reserve("", "k", "g")
    assert refused.value.field == "Idempotency-Key"


def test_keys_of_different_owners_are_different(keys):
    assert keys.reserve("a", "k", "f").job_id != keys.reserve("b", "k", "g").job_id
    assert keys.reserve("a", "bk", "f").job_id != keys.reserve("ab", "k", "f").job_id


def test_unused_key_expires(keys, redis):
    reservation = keys.reserve("", "k", "f")
    assert 0 < redis.pttl(reservation.name) <= KEEP_S * 1000


def test_repeated_request_gets_the_submitted_job(keys, store):
    reservation = keys.reserve("", "k", "f")
    job = store.client.submit(a_submission(id=reservation.job_id, key_reservation=reservation)).job
    assert keys.reserve("", "k", "f").job == job
    with pytest.raises(KeyReused):
        keys.reserve("", "k", "g")


def test_submitting_twice_is_submitting_once(keys, store):
    reservation = keys.reserve("", "k", "f")
    first, second = (
        store.client.submit(a_submission(id=reservation.job_id, key_reservation=reservation))
        for _ in range(2)
    )
    assert first.job == second.job
    assert (first.is_new, second.is_new) == (True, False)
    assert len(store.client.list_jobs()) == 1


def test_released_key_is_free(keys):
    reservation = keys.reserve("", "k", "f")
    keys.release(reservation)
    assert keys.reserve("", "k", "g").job_id != reservation.job_id


def test_key_of_a_submitted_job_is_not_released(keys, store):
    reservation = keys.reserve("", "k", "f")
    store.client.submit(a_submission(id=reservation.job_id, key_reservation=reservation))
    keys.release(reservation)
    assert keys.reserve("", "k", "f").job is not None


def test_key_of_another_request_is_not_released(keys):
    reservation = keys.reserve("", "k", "f")
    keys.release(reservation)
    other = keys.reserve("", "k", "g")
    keys.release(reservation)
    assert keys.reserve("", "k", "g") == other


def test_submission_binds_a_key_that_was_released_meanwhile(keys, store):
    """Two came with the same request; the one failed, the other came through."""
    reservation = keys.reserve("", "k", "f")
    keys.release(reservation)
    job = store.client.submit(a_submission(id=reservation.job_id, key_reservation=reservation)).job
    assert keys.reserve("", "k", "f").job == job


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_key_that_was_released_meanwhile_creates_one_job(keys, store, order):
    """Three came with the same request; the second failed before the third came."""
    first = keys.reserve("", "k", "f")
    keys.release(first)
    third = keys.reserve("", "k", "f")
    reservations = [(first, third)[number] for number in order]
    submitted = [
        store.client.submit(a_submission(id=reservation.job_id, key_reservation=reservation))
        for reservation in reservations
    ]
    assert [each.job.id for each in submitted] == [reservations[0].job_id] * 2
    assert [each.is_new for each in submitted] == [True, False]
    assert store.client.list_jobs() == [keys.reserve("", "k", "f").job]


def test_submission_with_the_key_of_another_request_is_refused(keys, store):
    late = keys.reserve("", "k", "f")
    keys.release(late)
    other = keys.reserve("", "k", "g")
    with pytest.raises(KeyReused):
        store.client.submit(a_submission(id=late.job_id, key_reservation=late))
    job = store.client.submit(a_submission(id=other.job_id, key_reservation=other)).job
    assert store.client.list_jobs() == [job]


def test_submission_of_another_request_under_the_same_id_is_refused(keys, store):
    reservation = keys.reserve("", "k", "f")
    other = replace(reservation, fingerprint="g")
    with pytest.raises(KeyReused):
        store.client.submit(a_submission(id=reservation.job_id, key_reservation=other))
    assert store.client.list_jobs() == []


def test_key_is_removed_with_its_job(keys, store, redis):
    reservation = keys.reserve("", "k", "f")
    store.client.submit(a_submission(id=reservation.job_id, key_reservation=reservation))
    assert redis.pttl(reservation.name) == -1
    store.client.delete(reservation.job_id)
    assert not redis.exists(reservation.name)


def test_key_is_removed_when_its_job_expires(keys, store, clock, redis):
    reservation = keys.reserve("", "k", "f")
    job = store.client.submit(a_submission(id=reservation.job_id, key_reservation=reservation)).job
    ended = store.client.cancel(job.id)
    clock.advance((ended.expires_at - ended.finished_at).total_seconds() + 1)
    store.maintenance.sweep()
    assert not redis.exists(reservation.name)


def test_key_gets_another_id_while_its_files_are_removed(keys, store, clock):
    reservation = keys.reserve("", "k", "f")
    store.client.reserve(reservation.job_id)
    clock.advance(LATE_UPLOAD_S)
    again = keys.reserve("", "k", "f")
    assert again.job_id != reservation.job_id
    assert store.client.submit(a_submission(id=again.job_id, key_reservation=again)).job.status == "queued"
