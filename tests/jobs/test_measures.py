"""What is counted as jobs go."""

from __future__ import annotations

import math

import pytest
from redis import Redis

from jobs.capability import GroupRegistration
from jobs.errors import GenerationFailed, UploadFailed
from jobs.store.measures import Measure, Waiting, measures, waiting
from tests.jobs.examples import Desk, a_result


@pytest.fixture
def taken(redis: Redis):
    def take() -> dict[tuple[str, str], Measure]:
        return {(measure.name, measure.label): measure for measure in measures(redis)}

    return take


def test_nothing_is_measured_at_first(redis: Redis):
    assert measures(redis) == []


def test_a_job_that_succeeds_tells_where_its_time_went(desk: Desk, redis: Redis, taken):
    GroupRegistration(redis, "a").publish("busy", ranks=4)
    desk.submit()
    desk.clock.advance(5)
    claim = desk.claim("a")
    desk.clock.advance(62)
    desk.job_store.holder.succeed(claim, a_result(claim), {"denoise": 50.0, "decode": 2.5})
    found = taken()
    assert found["wait_seconds", "normal"].sum == 5
    assert found["run_seconds", "text_to_video"].sum == 62
    assert found["phase_seconds", "denoise"].sum == 50
    assert found["phase_seconds", "decode"].sum == 2.5
    assert found["step_seconds", "text_to_video"].sum == 1
    assert found["gpu_seconds_per_video_second", "text_to_video"].sum == pytest.approx(4 * 62 / 6.2)
    assert (found["jobs_ended", "succeeded"].sum, found["attempts", ""].sum) == (1, 1)
    assert (found["uploads", "stored"].sum, found["uploaded_bytes", ""].sum) == (1, 1000)


def test_failures_are_counted_by_their_code(desk: Desk, taken):
    for error in (GenerationFailed("no"), GenerationFailed("no"), UploadFailed("no")):
        desk.job_store.holder.fail(desk.start(), error, {})
    found = taken()
    assert (found["failures", "generation_failed"].sum, found["failures", "upload_failed"].sum) == (2, 1)
    assert found["uploads", "failed"].sum == 1
    assert found["jobs_ended", "failed"].sum == 3


def test_a_job_that_was_put_back_waited_once_and_took_several_attempts(desk: Desk, taken):
    claim = desk.start()
    desk.job_store.holder.requeue(claim, crashed=True)
    desk.job_store.holder.requeue(desk.claim(), crashed=False)
    again = desk.claim()
    desk.clock.advance(3)
    desk.job_store.holder.succeed(again, a_result(again), {})
    found = taken()
    assert sum(found["wait_seconds", "normal"].buckets.values()) == 1
    assert (found["put_back", "crashed"].sum, found["put_back", "drained"].sum) == (1, 1)
    assert found["attempts", ""].sum == 2


def test_what_is_cancelled_in_the_queue_has_not_run(desk: Desk, taken):
    desk.job_store.client.cancel(desk.submit().id)
    assert {name for name, _ in taken()} == {"jobs_ended"}


def test_a_reply_that_was_lost_is_not_counted_twice(desk: Desk, taken):
    claim = desk.start()
    for _ in range(2):
        desk.job_store.holder.succeed(claim, a_result(claim), {})
    assert taken()["jobs_ended", "succeeded"].sum == 1


@pytest.mark.parametrize("seconds", [0.001, 0.0625, 1, 1.001, 2, 3, 60, 3600, 86400])
def test_a_value_lies_in_the_smallest_bucket_that_holds_it(desk: Desk, taken, seconds):
    desk.submit()
    desk.clock.advance(seconds)
    desk.claim()
    (bound,) = taken()["wait_seconds", "normal"].buckets
    highest = 2.0**16.5
    assert seconds <= bound * 1.000001 or bound == highest
    assert bound / math.sqrt(2) < seconds


def test_no_time_at_all_is_a_value_too(desk: Desk, taken):
    desk.start()
    assert taken()["wait_seconds", "normal"].buckets == {2.0**-10: 1}


def test_the_queue_is_told_by_priority(desk: Desk, redis: Redis):
    desk.submit(priority="low")
    desk.clock.advance(5)
    desk.submit(priority="high")
    desk.submit(priority="high")
    desk.clock.advance(2)
    assert waiting(redis, desk.clock) == [
        Waiting("high", 2, 2.0),
        Waiting("normal", 0, 0),
        Waiting("low", 1, 7.0),
    ]
