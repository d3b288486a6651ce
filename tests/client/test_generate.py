"""Requests for videos: what is sent, how it is repeated, and which errors they end with."""

from __future__ import annotations

import errno
import io
import itertools
import re
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from pydantic import SecretStr

from jobs.errors import OutOfMemory
from longcat_video_client import (
    ApiError,
    AsyncClient,
    Client,
    Conflict,
    InvalidRequest,
    Job,
    JobCancelled,
    JobFailed,
    JobVideo,
    RetryPolicy,
    ServiceUnavailable,
    Timeout,
    Unauthorized,
    UnexpectedReply,
)
from service.app import create_app
from tests.servers import free_port
from tests.service.conftest import serving
from tests.service.hosts import host, redirecting, sending
from tests.service.media import clip, encoded, picture
from tests.service.working import working
from tests.waiting import wait_until

SIZE = (96, 64)  # of `picture`
JOB = b'{"id": "a", "status": "queued"}'


def retry_after(text, status):
    """Return a handler that answers with this `Retry-After`."""

    def answer(request):
        request.send_response(status)
        request.send_header("Retry-After", text)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


class Stream(io.BytesIO):
    """A file that can be read once, such as a pipe."""

    def seekable(self):
        return False


def test_generate_saves_the_video_and_reports_each_change(service, worker, tmp_path):
    seen: list[Job] = []

    def reports_half() -> bool:
        return any(update.progress and update.progress.fraction == 0.5 for update in seen)

    def succeed(claim):
        wait_until(reports_half)
        worker.succeed(claim)

    with working(worker, succeed):
        job = service.generate("a red ball", seed=7, output=tmp_path / "out.mp4", on_update=seen.append)
    assert (job.status, job.request.seed) == ("succeeded", 7)
    assert (tmp_path / "out.mp4").read_bytes() == b"a video"
    assert [seen[0].status, seen[-1]] == ["queued", job]
    assert reports_half()


def test_generate_without_output_saves_nothing(service, worker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with working(worker, worker.succeed):
        assert service.generate("a red ball").result.num_frames == 17
    assert {path.name for path in tmp_path.iterdir()} == {"upload"}


@pytest.mark.parametrize("output", ["no/out.mp4", "."])
def test_output_that_cannot_be_written_is_noticed_before_anything_is_sent(connect, tmp_path, output):
    client = connect("http://127.0.0.1:1", retry=RetryPolicy(total_s=0))
    with pytest.raises(OSError, match=re.escape(repr(str(tmp_path / output)))):
        client.generate("a", output=tmp_path / output)
    with pytest.raises(OSError, match=re.escape(repr(str(tmp_path / output)))):
        client.jobs.download("a", tmp_path / output)
    assert not list(tmp_path.iterdir())


def test_file_errors_after_the_submission_carry_the_job(service, worker):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    with working(worker, worker.succeed), pytest.raises(OSError, match="No space") as caught:
        service.generate("a red ball", output=Full())
    [job] = service.jobs.list()
    assert vars(caught.value)["job_id"] == job.id
    assert caught.value.__notes__ == [f"submitted as job {job.id}"]


def test_errors_of_the_service_after_the_submission_carry_the_job(connect):
    answers = [sending(JOB, 202), sending(b"{}", 401)]

    def answer(request):
        request.rfile.read(int(request.headers.get("Content-Length", 0)))
        answers.pop(0)(request)

    with host(answer) as url, pytest.raises(Unauthorized) as caught:
        connect(url.removesuffix("/file")).generate("a")
    assert caught.value.job_id == "a"


def test_errors_before_the_submission_carry_no_job(service):
    with pytest.raises(InvalidRequest) as refused:
        service.generate("a", num_frames=16)
    assert refused.value.job_id is None


def test_failed_job_raises_its_code_and_whether_a_retry_can_help(service, worker):
    with (
        working(worker, lambda claim: worker.job_store.holder.fail(claim, OutOfMemory("does not fit"), {})),
        pytest.raises(JobFailed) as caught,
    ):
        service.generate("a red ball")
    failure = caught.value
    assert (failure.code, failure.message, failure.retryable) == ("out_of_memory", "does not fit", False)


def test_cancelled_job_raises(service, worker):
    def cancel(claim):
        worker.job_store.client.cancel(claim.job.id)
        worker.job_store.holder.confirm_cancel(claim)

    with working(worker, cancel), pytest.raises(JobCancelled):
        service.generate("a red ball")


def finished_job(service, worker):
    """Return a job that made a clip."""
    job = service.submit("a")
    worker.succeed(worker.claim(), video=clip(17))
    return service.jobs.get(job.id)


class TestInputs:
    @pytest.mark.parametrize("source", ["path", "text", "bytes", "file", "read file", "stream"])
    def test_image_is_sent_from(self, service, worker, tmp_path, source):
        content = encoded(picture())
        path = tmp_path / "image.png"
        path.write_bytes(content)
        opened = io.BytesIO(b"before" + content)
        opened.seek(6)
        sources = {
            "path": path,
            "text": str(path),
            "bytes": content,
            "file": io.BytesIO(content),
            "read file": opened,
            "stream": Stream(content),
        }
        job = service.submit("a cat", image=sources[source], metadata={"team": "x"}, height=64, width=96)
        assert (job.task, job.metadata) == ("image_to_video", {"team": "x"})
        assert (job.request.image.width, job.request.image.height) == SIZE

    def test_image_is_sent_as_a_url(self, service):
        with host(sending(encoded(picture()))) as url:
            assert service.submit("a cat", image=url).task == "image_to_video"

    def test_clip_and_url_can_be_sent_together(self, service):
        options = {"task": "refine", "spatial_refine_only": True, "webhook_events": ["failed"]}
        with host(sending(clip(17))) as url:
            job = service.submit(
                "on", video=clip(17), condition_video=url, webhook_url="http://127.0.0.1:1/hook", **options
            )
        assert (job.task, job.request.webhook_events) == ("refine", ("failed",))
        assert job.request.condition_video

    def test_several_prompts_with_an_image(self, service):
        job = service.submit(["one", "[2]"], image=encoded(picture()))
        assert (job.task, job.request.prompts) == ("long_video", ("one", "[2]"))

    def test_job_stands_for_its_video(self, service, worker):
        finished = finished_job(service, worker)
        assert service.submit("on", video=finished).request.video.sha256 == finished.result.sha256
        assert service.submit("on", image=finished).task == "image_to_video"

    def test_frame_of_a_job_is_sent_with_a_file(self, service, worker):
        finished = finished_job(service, worker)
        first, last = (JobVideo(finished.id, frame) for frame in (0, None))
        images = [
            service.submit("on", task="refine", video=clip(17), image=image).request.image
            for image in (first, last)
        ]
        assert [(image.width, image.height) for image in images] == [SIZE, SIZE]
        assert images[0].sha256 != images[1].sha256

    def test_job_without_a_video_is_refused(self, service):
        unfinished = service.submit("a")
        with pytest.raises(Conflict) as caught:
            service.submit("on", video=unfinished)
        assert (caught.value.code, caught.value.field) == ("job_not_ready", "video.job")

    def test_missing_file_is_noticed_before_anything_is_sent(self, connect, tmp_path):
        with pytest.raises(FileNotFoundError):
            connect("http://127.0.0.1:1").submit("a", image=tmp_path / "no.png")

    def test_option_that_does_not_exist_is_a_type_error(self, service):
        with pytest.raises(
            TypeError, match="unknown options: fps; pass options of newer services as `extra`"
        ):
            service.submit("a", fps=30)

    def test_extra_options_are_sent(self, service):
        with pytest.raises(InvalidRequest) as caught:
            service.submit("a", extra={"motion_strength": 2})
        assert caught.value.field == "motion_strength"
        assert service.submit("a", extra={"seed": 3}, seed=1).request.seed == 3


class TestSeveralVideos:
    def test_jobs_are_waited_for_together(self, service, worker):
        seen: list[Job] = []
        with working(worker, worker.succeed):
            first = service.submit("a", num_videos=3, seed=7)
            jobs = service.jobs.wait_all(first, on_update=seen.append)
        assert tuple(job.id for job in jobs) == first.all_ids == first.batch.job_ids
        assert [(job.status, job.request.seed) for job in jobs] == [("succeeded", seed) for seed in (7, 8, 9)]
        assert {job.id for job in seen} == set(first.all_ids)

    def test_wait_for_all_has_one_limit(self, service):
        with pytest.raises(Timeout):
            service.jobs.wait_all(service.submit("a", num_videos=2), timeout_s=0.1)

    def test_batch_is_listed_and_cancelled(self, service):
        alone, first = service.submit("a"), service.submit("a", num_videos=2)
        listed = [job.id for job in service.jobs.list(batch=first.batch.id)]
        assert listed == list(reversed(first.all_ids))
        assert [job.status for job in service.jobs.cancel_batch(first.batch.id)] == ["cancelled"] * 2
        assert (service.jobs.get(alone.id).status, alone.all_ids) == ("queued", (alone.id,))

    def test_generate_refuses_several(self, service):
        with pytest.raises(TypeError, match="use submit and"):
            service.generate("a", num_videos=2)


class TestRetries:
    def test_lost_reply_creates_no_second_job(self, connect, proxy, live):
        proxy.cut_after = [20]  # in the middle of the response
        job = connect(proxy.url).submit("a red ball")
        assert [found.id for found in connect(f"http://127.0.0.1:{live}").jobs.list()] == [job.id]
        assert proxy.num_connections == 2

    def test_file_is_sent_again_completely(self, connect, proxy):
        proxy.cut_after = [20, 300]
        job = connect(proxy.url).submit("a cat", image=io.BytesIO(encoded(picture())))
        assert (job.request.image.width, job.request.image.height) == SIZE
        assert proxy.num_connections == 3

    def test_same_key_returns_the_same_job(self, service):
        jobs = [service.submit("a", idempotency_key="order-7") for _ in range(2)]
        assert jobs[0].id == jobs[1].id
        assert service.submit("a").id != service.submit("a").id

    @pytest.mark.parametrize("status", [429, 502, 503, 504, 520, 524])
    def test_temporary_error_is_repeated_with_the_same_key(self, connect, status):
        keys, answers = [], [sending(b"{}", status), sending(JOB, 202)]

        def answer(request):
            keys.append(request.headers["Idempotency-Key"])
            request.rfile.read(int(request.headers["Content-Length"]))
            answers.pop(0)(request)

        with host(answer) as url:
            assert connect(url.removesuffix("/file")).submit("a").id == "a"
        assert len(keys) == 2
        assert len(set(keys)) == 1

    @pytest.mark.parametrize("status", [400, 401, 404, 408, 409, 422, 500])
    def test_final_error_is_not_repeated(self, connect, status):
        num_asked = itertools.count()

        def answer(request):
            next(num_asked)
            sending(b"{}", status)(request)

        with host(answer) as url, pytest.raises(ApiError, match="answered") as caught:
            connect(url.removesuffix("/file")).jobs.cancel("a")
        assert (caught.value.status, next(num_asked)) == (status, 1)

    def test_retry_waits_as_long_as_the_service_asks(self, connect, slept):
        answers = [retry_after("7", 503), retry_after("0", 429), sending(JOB)]
        with host(lambda request: answers.pop(0)(request)) as url:  # noqa: PLW0108 - another one each time
            policy = RetryPolicy(total_s=60.0, first_delay_s=1.0, max_delay_s=5.0)
            connect(url.removesuffix("/file"), retry=policy).jobs.get("a")
        assert slept[0] == 7.0
        assert 1.5 <= slept[1] <= 2.0

    def test_delays_grow_to_the_largest(self, connect, slept):
        policy = RetryPolicy(total_s=60.0, first_delay_s=1.0, max_delay_s=5.0)
        answers = [*[sending(b"{}", 503)] * 4, sending(JOB)]
        with host(lambda request: answers.pop(0)(request)) as url:  # noqa: PLW0108 - another one each time
            connect(url.removesuffix("/file"), retry=policy).jobs.get("a")
        bounds = [(0.75, 1.0), (1.5, 2.0), (3.0, 4.0), (3.75, 5.0)]
        assert all(low <= pause <= high for pause, (low, high) in zip(slept, bounds, strict=True)), slept

    def test_each_retry_is_told_with_its_delay(self, connect, slept):
        told = []
        policy = RetryPolicy(on_retry=lambda error, delay_s: told.append((error.status, delay_s)))
        answers = [retry_after("7", 503), retry_after("8", 429), sending(JOB)]
        with host(lambda request: answers.pop(0)(request)) as url:  # noqa: PLW0108 - another one each time
            connect(url.removesuffix("/file"), retry=policy).jobs.get("a")
        assert told == [(503, 7.0), (429, 8.0)]
        assert slept == [7.0, 8.0]

    def test_connection_is_awaited_for_seconds_only(self):
        asked = []

        def answer(request):
            asked.append(request.extensions["timeout"])
            return httpx.Response(200, content=JOB.replace(b"queued", b"failed"))

        for request_timeout_s in (60.0, 0.5):
            transport = httpx.MockTransport(answer)
            with Client("http://fake", request_timeout_s=request_timeout_s, transport=transport) as client:
                client.jobs.get("a")
                client.jobs.wait("a")
        assert {(each["connect"], each["read"]) for each in asked} == {(5.0, 60.0), (0.5, 0.5)}

    def test_date_in_retry_after_is_understood(self, connect):
        at = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
        policy = RetryPolicy(total_s=0.0)
        for text, low, high in ((at, 3500, 3600), ("Sat, 01 Jan 2000 00:00:00 GMT", 0, 0)):
            with host(retry_after(text, 503)) as url, pytest.raises(ServiceUnavailable) as caught:
                connect(url.removesuffix("/file"), retry=policy).jobs.get("a")
            assert caught.value.retry_after_s == pytest.approx((low + high) / 2, abs=(high - low) / 2)
        with host(retry_after("soon", 503)) as url, pytest.raises(ServiceUnavailable) as caught:
            connect(url.removesuffix("/file"), retry=policy).jobs.get("a")
        assert caught.value.retry_after_s is None

    def test_service_that_asks_for_too_long_a_wait_is_unavailable_at_once(
        self, connect, listening, redis, slept
    ):
        policy = RetryPolicy(total_s=5.0)
        with pytest.raises(ServiceUnavailable) as caught:
            connect(f"http://127.0.0.1:{listening}", retry=policy).submit("a")
        assert (caught.value.code, caught.value.retry_after_s) == ("no_worker", 15.0)
        assert slept == []

    def test_unreachable_service_is_unavailable_after_the_total_time(self, connect):
        policy = RetryPolicy(total_s=0.2, first_delay_s=0.01)
        with pytest.raises(ServiceUnavailable) as caught:
            connect(f"http://127.0.0.1:{free_port()}", retry=policy).submit("a")
        assert (caught.value.code, caught.value.status) == ("unreachable", None)

    def test_silent_service_is_unavailable(self, connect, proxy):
        proxy.stall_after = [0]
        policy = RetryPolicy(total_s=0.0)
        with pytest.raises(ServiceUnavailable):
            connect(proxy.url, retry=policy, request_timeout_s=0.1).submit("a")


class TestRefusals:
    def test_invalid_request_names_the_field_and_the_request(self, service):
        with pytest.raises(InvalidRequest) as caught:
            service.submit("a", num_frames=16)
        refused = caught.value
        assert (refused.status, refused.code, refused.field) == (422, "invalid_request", "num_frames")
        assert refused.request_id
        assert str(refused) == f"{refused.message} (invalid_request)"

    def test_missing_key_is_unauthorized(self, connect, settings):
        closed = create_app(settings.model_copy(update={"api_key": SecretStr("secret")}))
        with serving(closed) as port:
            with pytest.raises(Unauthorized):
                connect(f"http://127.0.0.1:{port}").submit("a")
            with pytest.raises(Unauthorized):
                connect(f"http://127.0.0.1:{port}", "other").submit("a")
            assert list(connect(f"http://127.0.0.1:{port}", "secret").jobs.list()) == []

    @pytest.mark.parametrize("content", [b"<html>", b"", b"[]", b"{}"])
    def test_other_servers_are_recognised(self, connect, content):
        with (
            host(sending(content)) as url,
            pytest.raises(UnexpectedReply, match="not a LongCat-Video service"),
        ):
            connect(url.removesuffix("/file")).jobs.get("a")

    @pytest.mark.parametrize("kind", ["jobs", "presets"])
    def test_page_of_another_server_deletes_nothing(self, connect, kind):
        with (
            host(sending(b"<html>")) as url,
            pytest.raises(UnexpectedReply, match="not a LongCat-Video service"),
        ):
            getattr(connect(url.removesuffix("/file")), kind).delete("a")

    def test_redirected_post_is_not_followed(self, connect):
        with (
            host(redirecting("http://127.0.0.1:1/")) as url,
            pytest.raises(UnexpectedReply, match="redirected"),
        ):
            connect(url.removesuffix("/file")).submit("a")

    def test_key_that_cannot_be_sent_is_reported(self, connect, live):
        with pytest.raises(UnexpectedReply):
            connect(f"http://127.0.0.1:{live}", "a\nb").jobs.get("a")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost:8000", "http://", "ftp://a", "http://a:b", ""])
def test_url_of_no_service_is_refused_at_once(kind, url):
    with pytest.raises(ValueError, match=f"^'{url}' is not a URL"):
        kind(url)


def test_threads_may_share_a_client(live, redis):
    with Client(f"http://127.0.0.1:{live}") as shared:
        threads = [threading.Thread(target=shared.submit, args=(str(number),)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {job.request.prompt for job in shared.jobs.list()} == {"0", "1", "2", "3"}
