"""A video of the pocket checkpoint is continued and used as an image, without download and upload."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from jobs.settings import POCKET
from tests.decoded_video import decode
from tests.running_stack import RunningStack, run_stack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not POCKET.exists(), reason="there is no pocket checkpoint here"),
]

PROMPT = "A small yellow ball moving to the right"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Run a stack of one rank on the pocket checkpoint."""
    with run_stack(tmp_path_factory.mktemp("stack"), POCKET, ranks=1) as stack:
        yield stack


@pytest.fixture(scope="module")
def finished(stack):
    return stack.succeeded(stack.order(prompt=PROMPT, seed=7))


def frames(stack, job):
    return decode(stack.video(job)).frames.astype(int)


def test_continuation_begins_with_the_end_of_the_first_video(stack, finished):
    job = stack.succeeded(stack.order(prompt=PROMPT, video={"job": finished["id"]}, seed=8))
    num_taken = job["request"]["num_condition_frames"]
    assert job["task"] == "video_continuation"
    taken, given = frames(stack, job)[:num_taken], frames(stack, finished)[-num_taken:]
    assert np.abs(taken - given).mean() < 4


def test_video_begins_with_a_frame_of_the_first_one(stack, finished):
    order = stack.order(prompt=PROMPT, image={"job": finished["id"], "frame": 3}, seed=8)
    job = stack.succeeded(order)
    assert job["task"] == "image_to_video"
    differences = np.abs(frames(stack, finished) - frames(stack, job)[0]).mean(axis=(1, 2, 3))
    assert differences[3] < 4
    assert differences.argmin() == 3
