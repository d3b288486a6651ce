"""The store counts each change of a job once, in the step that makes it."""

from __future__ import annotations

import pytest
from redis import Redis

from jobs.errors import GenerationFailed, UploadFailed
from jobs.order import InputFile
from jobs.store.metrics import counters
from tests.jobs.examples import ExampleStore, a_result
from tests.orders import make_order

CLIP = InputFile(
    key="clip", media_type="video/mp4", size_bytes=6, sha256="0", width=832, height=480, num_frames=93
)


def test_no_counters_before_the_first_job(redis: Redis):
    assert counters(redis) == {}


def test_succeeded_job_counts_wait_run_phases_and_upload(store: ExampleStore, redis: Redis):
    store.submit()
    store.clock.advance(5)
    claim = store.claim("a")
    store.clock.advance(62)
    store.holder.succeed(claim, a_result(claim), {"denoise": 50.0, "decode": 2.5})
    found = counters(redis)
    assert (found["wait_seconds_sum", "normal"], found["wait_seconds_count", "normal"]) == (5, 1)
    assert (found["run_seconds_sum", "text_to_video"], found["run_seconds_count", "text_to_video"]) == (62, 1)
    assert (found["phase_seconds_sum", "denoise"], found["phase_seconds_count", "denoise"]) == (50, 1)
    assert found["phase_seconds_sum", "decode"] == 2.5
    assert found["step_seconds_sum", "text_to_video"] == 1
    assert found["video_seconds", "text_to_video"] == pytest.approx(6.2)
    assert (found["jobs_ended", "succeeded"], found["attempts", ""]) == (1, 1)
    assert (found["uploads", "stored"], found["uploaded_bytes", ""]) == (1, 1000)


@pytest.mark.parametrize(
    ("task", "num_segments", "has_clip", "num_steps"),
    [
        ("video_continuation", 1, True, 56),
        ("long_video", 3, False, 50 + 2 * 56),
        ("long_video", 3, True, 3 * 56),
    ],
)
def test_time_of_a_step_counts_the_steps_that_continuations_have(
    store: ExampleStore, redis: Redis, task, num_segments, has_clip, num_steps
):
    order = make_order(task=task, num_segments=num_segments, video=CLIP if has_clip else None)
    claim = store.start(order=order)
    store.holder.succeed(claim, a_result(claim), {"denoise": 2.0 * num_steps})
    assert counters(redis)["step_seconds_sum", task] == pytest.approx(2.0)


def test_failures_are_counted_by_error_code(store: ExampleStore, redis: Redis):
    for error in (GenerationFailed("no"), GenerationFailed("no"), UploadFailed("no")):
        store.holder.fail(store.start(), error, {"encode": 1.0})
    found = counters(redis)
    assert (found["failures", "generation_failed"], found["failures", "upload_failed"]) == (2, 1)
    assert found["uploads", "failed"] == 1
    assert found["jobs_ended", "failed"] == 3
    assert found["phase_seconds_count", "encode"] == 3


def test_requeued_job_counts_one_wait_and_several_attempts(store: ExampleStore, redis: Redis):
    claim = store.start()
    store.clock.advance(2)
    store.holder.requeue(claim, crashed=True)
    store.clock.advance(1000)
    store.holder.requeue(store.claim(), crashed=False)
    again = store.claim()
    store.clock.advance(3)
    store.holder.succeed(again, a_result(again), {})
    found = counters(redis)
    assert found["wait_seconds_count", "normal"] == 1
    assert (found["requeues", "crashed"], found["requeues", "drained"]) == (1, 1)
    assert found["attempts", ""] == 2
    assert found["run_seconds_sum", "text_to_video"] == 5


def test_job_cancelled_in_the_queue_counts_no_run(store: ExampleStore, redis: Redis):
    store.client.cancel(store.submit().id)
    assert counters(redis) == {("jobs_ended", "cancelled"): 1}


def test_job_cancelled_while_it_succeeds_counts_no_video(store: ExampleStore, redis: Redis):
    claim = store.start()
    store.client.cancel(claim.job.id)
    store.holder.succeed(claim, a_result(claim), {"denoise": 50.0})
    found = counters(redis)
    assert found["jobs_ended", "cancelled"] == 1
    assert not {name for name, _ in found} & {"uploads", "video_seconds", "phase_seconds_sum"}


def test_repeated_call_counts_once(store: ExampleStore, redis: Redis):
    claim = store.start()
    for _ in range(2):
        store.holder.succeed(claim, a_result(claim), {})
    found = counters(redis)
    assert (found["jobs_ended", "succeeded"], found["uploads", "stored"]) == (1, 1)
