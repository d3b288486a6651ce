"""Many jobs at once on one stack: all succeed, in order, and no process grows. `make soak` runs it."""

from __future__ import annotations

import psutil
import pytest

from tests.decoded_video import decode

NUM_JOBS = 50
WARM_AFTER = 10
GROWTH_BYTES = 32 << 20

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def ended(stack):
    """All jobs, ordered at once, with the memory of each process after some and after all of them."""
    ordered = [stack.order(prompt=f"video {number}", seed=number) for number in range(NUM_JOBS)]
    jobs = [stack.succeeded(job) for job in ordered[:WARM_AFTER]]
    warm = memory(stack)
    jobs += [stack.succeeded(job) for job in ordered[WARM_AFTER:]]
    return jobs, warm, memory(stack)


def memory(stack) -> dict[psutil.Process, int]:
    return {process: process.memory_info().rss for process in stack.descendants}


def test_they_run_in_order(ended):
    starts = [job["started_at"] for job in ended[0]]
    assert starts == sorted(starts)


def test_each_job_has_a_different_video_that_plays(ended, stack):
    videos = [stack.video(job) for job in ended[0]]
    assert len(set(videos)) == NUM_JOBS
    assert all(len(decode(video).frames) == 17 for video in videos)


def test_no_process_grows_and_none_was_started_again(ended):
    _, warm, end = ended
    assert set(warm) == set(end)
    grown = {process: end[process] - warm[process] for process in warm}
    assert {process: by for process, by in grown.items() if by > GROWTH_BYTES} == {}
