"""What the demo prints and saves, with the real service and a simulated worker."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from jobs.errors import OutOfMemory
from longcat_video_client import Client, JobFailed, Result, RetryPolicy
from stack.demo import IMAGE_PROMPT, PROMPT, SEED, describe, make_videos, prepare_videos, sample_image
from stack.errors import StackError
from tests.service import conftest as of_service
from tests.service.working import working

# The service and its worker, as the tests of the service have them.
app = of_service.app
listening = of_service.listening
live = of_service.live
settings = of_service.settings
worker = of_service.worker


@pytest.fixture
def demo_client(live):
    with Client(f"http://127.0.0.1:{live}", retry=RetryPolicy(total_s=0)) as client:
        yield client


@pytest.fixture
def videos(tmp_path):
    return prepare_videos(tmp_path / "out")


def test_demo_saves_both_videos_and_says_where_they_are(demo_client, worker, videos):
    orders = []

    def succeed(claim):
        orders.append(claim.job.order)
        worker.succeed(claim)

    screen = io.StringIO()
    with working(worker, succeed):
        make_videos(demo_client, videos, screen)
    assert [(order.plan.task, order.prompts, order.seed) for order in orders] == [
        ("text_to_video", (PROMPT,), SEED),
        ("image_to_video", (IMAGE_PROMPT,), SEED),
    ]
    assert [video.path.read_bytes() for video in videos] == [b"a video", b"a video"]
    lines = screen.getvalue().splitlines()
    assert f"Video 1 of 2, from a prompt: {PROMPT}" in lines
    assert f"Video 2 of 2, from the image {videos[1].image}: {IMAGE_PROMPT}" in lines
    saved = [line for line in lines if ".mp4: " in line]
    assert [line.partition(": ")[0] for line in saved] == [str(video.path) for video in videos]
    assert all("17 frames of 96×64 at 15 fps" in line for line in saved)


def test_demo_fails_with_the_message_of_a_job_that_failed(demo_client, worker, videos):
    with (
        working(worker, lambda claim: worker.job_store.holder.fail(claim, OutOfMemory("does not fit"), {})),
        pytest.raises(JobFailed, match="does not fit"),
    ):
        make_videos(demo_client, videos, io.StringIO())
    assert not videos[0].path.exists()


def test_video_that_cannot_be_written_is_reported(demo_client, worker, videos):
    videos[0].path.mkdir()
    with working(worker, worker.succeed), pytest.raises(StackError, match=f"cannot write {videos[0].path}"):
        make_videos(demo_client, videos, io.StringIO())


def test_video_is_described_by_its_result():
    result = Result(
        video_url="/jobs/a/video",
        width=96,
        height=64,
        num_frames=17,
        fps=15,
        duration_s=17 / 15,
        size_bytes=12345,
        sha256="0",
        seed=7,
    )
    described = describe(result, {"denoise": 1.0, "decode": 0.5})
    assert described == "17 frames of 96×64 at 15 fps (1.1 s), 12,345 bytes, seed 7, made in 1.5 s"


def test_sample_image_is_a_png_with_a_yellow_triangle_on_black():
    with Image.open(io.BytesIO(sample_image())) as image:
        assert (image.format, image.size) == ("PNG", (384, 256))
        red, green, blue = np.asarray(image)[130, 96].tolist()
        assert min(red, green) > 180
        assert blue < 80
        assert image.getpixel((380, 10)) == (15, 15, 15)
