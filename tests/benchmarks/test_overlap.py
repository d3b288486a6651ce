"""What the overlap benchmark reads from timelines."""

from __future__ import annotations

import pytest

from benchmarks.overlap import Found, stages_s, waited_s


def event(name, lane, began_s, lasted_s):
    return {"name": name, "cat": lane, "ph": "X", "ts": began_s * 1e6, "dur": lasted_s * 1e6}


JOB = [
    {"name": "thread_name", "ph": "M"},
    event("denoise", "ranks", 0, 4),
    event("step 1", "ranks", 0, 2),
    event("decode", "ranks", 4, 1),
    event("chunk", "ranks", 4, 0.5),
    event("x264", "video", 4.5, 0.5),
    event("x264, the rest", "video", 5, 2),
]


def test_stages_of_a_job_leave_out_their_parts_and_join_those_of_the_video():
    assert stages_s(JOB) == {"denoise": 4.0, "decode": 1.0, "video": 2.5}


@pytest.mark.parametrize(("begins_s", "waited"), [(5, 0.0), (5.25, 0.25), (4.75, 0.0)])
def test_ranks_wait_while_no_job_has_them(begins_s, waited):
    later = [event("encode", "ranks", begins_s, 1), event("denoise", "ranks", begins_s + 1, 3)]
    assert waited_s([*later, *JOB]) == waited


def test_the_ratio_is_to_the_same_jobs_one_by_one():
    assert Found(jobs=20, alone_s=4.0, stages_s={}, at_once_s=52.0, ranks_waited_s=0.1).ratio == 0.65
