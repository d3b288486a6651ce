"""OpenAI's own client against the running service, with a thread as the worker."""

from __future__ import annotations

import io
from typing import Any
from unittest.mock import ANY

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI, omit

from jobs.errors import OutOfMemory
from jobs.record import Progress
from jobs.store.submission import Submission
from tests.service.media import clip, encoded, in_base64, picture
from tests.service.working import working

VIDEO = clip(17)

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def videos(live):
    """Return the videos API of a client without retries."""
    with OpenAI(base_url=f"http://127.0.0.1:{live}/v1", api_key="none", max_retries=0) as client:
        yield client.videos


@pytest.fixture
def finished(videos, worker):
    """Create a finished video."""
    video = videos.create(prompt="a red ball")
    worker.succeed(worker.claim(), video=VIDEO)
    return video


def made(video):
    """Return a reference to a video for `extra_body`."""
    return {"video": omit, "extra_body": {"video": {"id": video.id}}}


class TestWaiting:
    def test_create_and_poll_returns_the_finished_video(self, videos, worker):
        with working(worker, worker.succeed):
            video = videos.create_and_poll(prompt="a red ball", seconds="1", size="96x64")
        assert (video.status, video.progress, video.error) == ("completed", 100, None)
        assert (video.seconds, video.size, video.model) == ("1", "96x64", "LongCat-Video")
        assert video.created_at <= video.completed_at < video.expires_at

    def test_create_and_poll_returns_the_failed_video(self, videos, worker):
        def fail(claim):
            worker.job_store.holder.fail(claim, OutOfMemory("does not fit"), {})

        with working(worker, fail):
            video = videos.create_and_poll(prompt="a red ball")
        assert (video.status, video.completed_at) == ("failed", None)
        assert (video.error.code, video.error.message) == ("out_of_memory", "does not fit")

    def test_asynchronous_client_works_too(self, live, worker):
        import asyncio

        async def order():
            async with AsyncOpenAI(base_url=f"http://127.0.0.1:{live}/v1", api_key="none") as client:
                return await client.videos.create_and_poll(prompt="a red ball", seconds="4")

        with working(worker, worker.succeed):
            assert asyncio.run(order()).status == "completed"


class TestCreating:
    @pytest.mark.parametrize("seconds", ["4", "6", "1"])
    def test_response_describes_the_video(self, videos, seconds):
        video = videos.create(prompt="a red ball", seconds=seconds)
        assert (video.object, video.status, video.progress) == ("video", "queued", 0)
        assert (video.prompt, video.model) == ("a red ball", "LongCat-Video")
        assert float(video.seconds) == pytest.approx(float(seconds), abs=0.6)

    def test_accepts_a_file_as_the_first_frame(self, videos, worker):
        picture_file = ("cat.png", io.BytesIO(encoded(picture())), "image/png")
        videos.create(prompt="the cat stands up", input_reference=picture_file, size="96x64")
        order = worker.claim().job.order
        assert (order.plan.task, order.image.width, order.image.height) == ("image_to_video", 96, 64)

    def test_accepts_a_url_as_the_first_frame(self, videos, worker):
        url = f"data:image/png;base64,{in_base64(encoded(picture()))}"
        reference = {"input_reference": {"image_url": url}}
        videos.create(prompt="the cat stands up", extra_body=reference)
        assert worker.claim().job.order.plan.task == "image_to_video"

    @pytest.mark.parametrize("size", ["720x1280", "1280x720", "1024x1792", "1792x1024"])
    def test_accepts_every_size_of_the_client(self, videos, size):
        width, height = map(int, videos.create(prompt="a red ball", size=size).size.split("x"))
        given_width, given_height = map(int, size.split("x"))
        assert (width > height) == (given_width > given_height) or (width, height) == (192, 128)

    def test_accepts_any_model_and_returns_the_one_used(self, videos):
        assert videos.create(prompt="a red ball", model="sora-2").model == "LongCat-Video"

    def test_accepts_our_own_options_in_an_extra_body(self, videos, worker):
        extra: dict[str, Any] = {"seed": 7, "priority": "high", "metadata": {"team": "a"}, "distilled": True}
        videos.create(prompt="a red ball", extra_body=extra)
        job = worker.claim().job
        assert (job.order.seed, job.priority, job.metadata) == (7, "high", {"team": "a"})
        assert job.order.plan.distilled

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"prompt": ""}, "prompt"),
            ({"seconds": "0"}, "seconds"),
            ({"seconds": "600"}, "seconds"),
            ({"seconds": "long"}, "seconds"),
            ({"size": "97x64"}, "size"),
            ({"size": "4096x4096"}, "size"),
            ({"size": "big"}, "size"),
            ({"size": "0x64"}, "size"),
            ({"size": "96x0"}, "size"),
            ({"input_reference": ("cat.png", b"not an image")}, "input_reference"),
            (
                {"extra_body": {"input_reference": {"image_url": "ftp://a.example/cat.png"}}},
                "input_reference",
            ),
            ({"extra_body": {"input_reference": {"file_id": "file-123"}}}, "input_reference.file_id"),
            ({"extra_body": {"quality": "high"}}, "quality"),
            ({"extra_body": {"seed": "new"}}, "seed"),
        ],
    )
    def test_invalid_request_names_the_field(self, videos, redis, fields, param):
        with pytest.raises(openai.BadRequestError) as refused:
            videos.create(**{"prompt": "a red ball"} | fields)
        assert refused.value.param == param
        assert refused.value.type == "invalid_request_error"
        assert refused.value.code in {"invalid_request", "invalid_input"}
        assert refused.value.request_id
        assert refused.value.message.count(param.split(".")[0]) >= 1
        assert list(videos.list()) == []


class TestManaging:
    def test_retrieve_shows_progress_in_whole_percent(self, videos, worker):
        video = videos.create(prompt="a red ball")
        claim = worker.claim()
        worker.job_store.holder.renew_lease(claim, Progress(phase="denoise", fraction=0.678, eta_s=8.0))
        shown = videos.with_raw_response.retrieve(video.id)
        assert (shown.parse().status, shown.parse().progress) == ("in_progress", 67)
        assert shown.headers["openai-poll-after-ms"] == "2000"

    def test_a_cancelled_job_is_failed(self, videos, live, worker):
        video = videos.create(prompt="a red ball")
        httpx2.post(f"http://127.0.0.1:{live}/jobs/{video.id}/cancel", timeout=60)
        shown = videos.with_raw_response.retrieve(video.id)
        assert (shown.parse().status, shown.parse().error.code) == ("failed", "cancelled")
        assert "openai-poll-after-ms" not in shown.headers

    def test_video_is_a_job_on_our_own_routes(self, videos, live):
        video = videos.create(prompt="a red ball", seconds="1")
        job = httpx2.get(f"http://127.0.0.1:{live}/jobs/{video.id}", timeout=60).json()
        assert (job["request"]["num_frames"], job["request"]["prompt"]) == (17, "a red ball")

    def test_list_iterates_over_all_pages(self, videos):
        made = [videos.create(prompt=f"ball {number}").id for number in range(5)]
        assert [video.id for video in videos.list(limit=2)] == made[::-1]
        assert [video.id for video in videos.list(limit=2, order="asc")] == made
        assert [video.id for video in videos.list(after=made[2], order="desc")] == made[1::-1]

    def test_page_has_its_first_and_last_id(self, videos):
        made = [videos.create(prompt=f"ball {number}").id for number in range(3)]
        page = videos.list(limit=2, order="asc")
        assert (page.data[0].id, page.last_id, page.has_more) == (made[0], made[1], True)
        assert page.get_next_page().has_more is False

    def test_page_of_size_zero_is_empty(self, videos):
        videos.create(prompt="a red ball")
        page = videos.list(after="after", limit=0, order="asc")
        assert (page.data, page.has_more, page.has_next_page()) == ([], False, False)

    @pytest.mark.parametrize("query", [{"limit": 101}, {"limit": -1}, {"order": "up"}])
    def test_invalid_page_is_refused(self, videos, query):
        with pytest.raises(openai.BadRequestError) as refused:
            videos.list(**query)
        assert refused.value.param == next(iter(query))

    def test_page_after_an_unknown_video_is_not_found(self, videos):
        with pytest.raises(openai.NotFoundError) as missing:
            videos.list(after="nobody")
        assert (missing.value.code, missing.value.param) == ("job_not_found", "after")

    def test_delete_removes_the_job(self, videos, finished):
        gone = videos.delete(finished.id)
        assert (gone.id, gone.deleted, gone.object) == (finished.id, True, "video.deleted")
        with pytest.raises(openai.NotFoundError) as missing:
            videos.retrieve(finished.id)
        assert missing.value.code == "job_not_found"

    def test_delete_cancels_a_running_job(self, videos, worker):
        video = videos.create(prompt="a red ball")
        claim = worker.claim()
        assert videos.delete(video.id).deleted
        assert worker.job_store.holder.renew_lease(claim) == "cancel"
        worker.job_store.holder.confirm_cancel(claim)
        with pytest.raises(openai.NotFoundError):
            videos.retrieve(video.id)


class TestContent:
    def test_returns_the_video(self, videos, finished):
        assert videos.download_content(finished.id).read() == VIDEO
        assert videos.download_content(finished.id, variant="video").read() == VIDEO

    def test_returns_the_thumbnail(self, videos, finished):
        content = videos.download_content(finished.id, variant="thumbnail")
        assert content.read() == b"a thumbnail"
        assert content.response.headers["Content-Type"] == "image/jpeg"

    def test_can_be_streamed_to_a_file(self, videos, finished, tmp_path):
        with videos.with_streaming_response.download_content(finished.id) as answer:
            answer.stream_to_file(tmp_path / "out.mp4")
        assert (tmp_path / "out.mp4").read_bytes() == VIDEO

    def test_spritesheets_are_not_supported(self, videos, finished):
        with pytest.raises(openai.BadRequestError) as refused:
            videos.download_content(finished.id, variant="spritesheet")
        assert refused.value.param == "variant"

    def test_unfinished_video_is_a_conflict_without_retry(self, live):
        asked: list[httpx2.Request] = []
        http = httpx2.Client(event_hooks={"request": [asked.append]}, timeout=60)
        with OpenAI(base_url=f"http://127.0.0.1:{live}/v1", api_key="none", http_client=http) as client:
            video = client.videos.create(prompt="a red ball")
            with pytest.raises(openai.ConflictError) as refused:
                client.videos.download_content(video.id)
        assert refused.value.code == "job_not_ready"
        assert [request.method for request in asked] == ["POST", "GET"]


class TestExtending:
    def test_continues_a_finished_video(self, videos, finished, worker):
        video = videos.extend(prompt="it stops", seconds="1", **made(finished))
        order = worker.claim().job.order
        assert (order.plan.task, order.plan.num_condition_frames, order.plan.num_frames) == (
            "video_continuation",
            5,
            21,
        )
        assert order.video.num_frames == 17
        assert video.seconds == "1.4"  # includes the frames that it takes over
        assert video.size == "96x64"

    def test_long_extension_has_several_segments(self, videos, finished, worker):
        videos.extend(prompt="it stops", seconds="4", **made(finished))
        order = worker.claim().job.order
        assert (order.plan.task, order.plan.num_segments) == ("long_video", 3)

    def test_keeps_the_size_of_the_video(self, videos, worker):
        video = videos.create(prompt="a red ball", size="192x128")
        worker.succeed(worker.claim(), video=VIDEO)
        assert videos.extend(prompt="on", seconds="1", **made(video)).size == "192x128"

    def test_continues_an_uploaded_clip(self, videos, worker):
        videos.extend(prompt="it stops", seconds="1", video=("mine.mp4", VIDEO))
        assert worker.claim().job.order.plan.task == "video_continuation"

    def test_unfinished_video_is_refused(self, videos):
        video = videos.create(prompt="a red ball")
        with pytest.raises(openai.ConflictError) as refused:
            videos.extend(prompt="on", seconds="1", **made(video))
        assert refused.value.code == "job_not_ready"

    def test_unknown_video_is_refused(self, videos):
        with pytest.raises(openai.NotFoundError):
            videos.extend(prompt="on", seconds="1", video=omit, extra_body={"video": {"id": "123"}})

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"video": ("mine.mp4", b"not a clip"), "extra_body": {}}, "video"),
            ({"video": ("mine.mp4", clip(3)), "extra_body": {}}, "video"),
            ({"video": ("mine.mp4", VIDEO)}, "video"),  # in addition to an id
            ({"extra_body": {}}, "video"),
            ({"seconds": "600"}, "seconds"),
            ({"prompt": " "}, "prompt"),
        ],
    )
    def test_refuses_what_cannot_be_made(self, videos, finished, fields, param):
        with pytest.raises(openai.BadRequestError) as refused:
            videos.extend(**{"prompt": "on", "seconds": "1", **made(finished)} | fields)
        assert refused.value.param == param


class TestVideoId:
    """Use ids like those of the client's own tests (`video_123`)."""

    @pytest.fixture(autouse=True)
    def video_123(self, videos, worker):
        videos.create(prompt="a red ball")
        order = worker.claim().job.order
        worker.job_store.client.submit(Submission(id="video_123", order=order))
        worker.succeed(worker.claim(), video=VIDEO)

    def test_is_retrieved(self, videos):
        video = videos.retrieve("video_123")
        assert (video.id, video.status) == ("video_123", "completed")
        with videos.with_streaming_response.retrieve("video_123") as answer:
            assert answer.parse() == video

    def test_is_listed(self, videos):
        raw = videos.with_raw_response.list(limit=1)
        assert [video.id for video in raw.parse()] == ["video_123", ANY]

    def test_is_downloaded(self, videos):
        assert videos.download_content(video_id="video_123", variant="video").read() == VIDEO

    def test_is_extended(self, videos):
        extra = {"video": {"id": "video_123"}}
        video = videos.extend(prompt="x", seconds="4", video=omit, extra_body=extra)
        assert video.status == "queued"

    def test_is_deleted(self, videos):
        assert videos.with_raw_response.delete("video_123").parse().deleted
        with pytest.raises(openai.NotFoundError):
            videos.retrieve("video_123")


def test_unknown_path_has_openais_error_shape(videos):
    with pytest.raises(openai.NotFoundError) as missing:
        videos.remix("video_123", prompt="x")
    assert (missing.value.code, missing.value.type) == ("not_found", "invalid_request_error")
    with pytest.raises(openai.APIStatusError) as wrong:
        videos.edit(prompt="x", video=b"a clip")
    assert (wrong.value.status_code, wrong.value.code) == (405, "method_not_allowed")


def test_idempotency_key_creates_one_video(videos):
    key = {"Idempotency-Key": "order-1"}
    first = videos.create(prompt="a red ball", extra_headers=key)
    again = videos.with_raw_response.create(prompt="a red ball", extra_headers=key)
    assert again.parse().id == first.id
    assert again.headers["Idempotent-Replayed"] == "true"
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        videos.create(prompt="a blue ball", extra_headers=key)
    assert refused.value.code == "idempotency_key_reused"
    assert len(list(videos.list())) == 1
