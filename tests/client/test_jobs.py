"""Reading, listing, cancelling, deleting and downloading jobs."""

from __future__ import annotations

import io
import os
import time
from datetime import datetime

import pytest

from longcat_video_client import (
    Conflict,
    IncompleteDownload,
    JobCancelled,
    JobNotReady,
    NotFound,
    RetryPolicy,
    ServiceUnavailable,
)
from tests.service.conftest import CAPABILITY
from tests.service.hosts import host, redirecting, sending

VIDEO = os.urandom(300_000)


@pytest.fixture
def finished(service, worker):
    """Return a job that succeeded with VIDEO."""
    job = service.submit("a")
    worker.succeed(worker.claim(), video=VIDEO)
    return service.jobs.get(job.id)


class TestRetry:
    def test_same_request_is_a_new_job(self, service, finished):
        again = service.jobs.retry(finished.id)
        assert again.id != finished.id
        assert (again.request.prompt, again.request.seed) == (finished.request.prompt, finished.request.seed)

    def test_changes_replace_options(self, service, finished):
        changed = service.jobs.retry(finished.id, prompt="a blue star", seed=8, num_inference_steps=3)
        request = changed.request
        assert (request.prompt, request.seed, request.num_inference_steps) == ("a blue star", 8, 3)

    def test_none_in_extra_gives_a_field_its_default(self, service, finished):
        seeds = {service.jobs.retry(finished.id, extra={"seed": None}).request.seed for _ in range(3)}
        assert len(seeds) == 3

    def test_key_makes_one_job(self, service, finished):
        ids = {service.jobs.retry(finished.id, seed=8, idempotency_key="once").id for _ in range(2)}
        assert len(ids) == 1

    def test_unknown_job_cannot_be_retried(self, service):
        with pytest.raises(NotFound):
            service.jobs.retry("nobody")


class TestReading:
    def test_get_returns_the_job(self, service):
        job = service.submit("a red ball", metadata={"team": "x"})
        found = service.jobs.get(job.id)
        assert (found.status, found.request.prompt, found.metadata) == ("queued", "a red ball", {"team": "x"})
        assert not found.has_ended

    def test_list_reads_all_pages(self, service, monkeypatch):
        monkeypatch.setattr("longcat_video_client.calls.MAX_PAGE_SIZE", 2)
        ids = [service.submit(str(number)).id for number in range(5)]
        assert [job.id for job in service.jobs.list()] == ids[::-1]
        assert [job.id for job in service.jobs.list(limit=3)] == ids[:1:-1]
        assert [job.id for job in service.jobs.list(limit=4)] == ids[:0:-1]

    def test_list_selects_a_status(self, service, worker):
        jobs = [service.submit(str(number)) for number in range(2)]
        service.jobs.cancel(jobs[0].id)
        assert [job.id for job in service.jobs.list(status="cancelled")] == [jobs[0].id]
        both = service.jobs.list(status=["cancelled", "queued"])
        assert [job.id for job in both] == [jobs[1].id, jobs[0].id]
        assert list(service.jobs.list(status=("running", "failed"))) == []

    def test_list_selects_a_task_and_a_time(self, service):
        first, long = service.submit("one"), service.submit(["two", "three"])
        assert [job.id for job in service.jobs.list(task="long_video")] == [long.id]
        assert [job.id for job in service.jobs.list(created_before=long.created_at)] == [first.id]
        assert [job.id for job in service.jobs.list(created_after=long.created_at)] == [long.id]

    def test_list_selects_a_text_of_prompts(self, service):
        first, long = service.submit("a Red ball"), service.submit(["a cube", "it turns red"])
        assert [job.id for job in service.jobs.list(text="red")] == [long.id, first.id]
        assert [job.id for job in service.jobs.list(text="CUBE")] == [long.id]

    def test_time_without_a_time_zone_is_refused(self, service):
        with pytest.raises(ValueError, match="time zone"):
            list(service.jobs.list(created_after=datetime(2026, 3, 2)))

    def test_usage_is_that_of_each_day(self, service, redis):
        assert service.usage() == ()
        redis.hset(f"longcat:usage:{int(time.time() // 86400)}", "anonymous", 2500)
        assert [(each.gpu_s, each.costs) for each in service.usage()] == [(2.5, {})]
        redis.hset(f"longcat:usage:{int(time.time() // 86400)}:cost:anonymous", "EUR", "1.5")
        assert [each.costs for each in service.usage()] == [{"EUR": 1.5}]

    def test_capability(self, service):
        found = service.capability()
        assert (found.model, found.tasks) == (CAPABILITY.model, CAPABILITY.tasks)
        assert found.limits["max_num_frames"] == CAPABILITY.limits["max_num_frames"]

    def test_timeline(self, service, finished):
        assert service.jobs.timeline(finished.id)["traceEvents"][0]["args"]["job"] == finished.id

    @pytest.mark.parametrize("job_id", ["nobody", "../jobs", "a/b?c", "..", ""])
    def test_unknown_job_is_not_found(self, service, job_id):
        with pytest.raises(NotFound):
            service.jobs.get(job_id)


class TestEnding:
    def test_cancel_can_be_repeated(self, service):
        job = service.submit("a")
        assert [service.jobs.cancel(job.id).status for _ in range(2)] == ["cancelled", "cancelled"]

    def test_finished_job_cannot_be_cancelled(self, service, finished):
        with pytest.raises(Conflict):
            service.jobs.cancel(finished.id)

    def test_deleted_job_is_gone(self, service):
        job = service.submit("a")
        assert service.jobs.delete(job.id) is None
        with pytest.raises(NotFound):
            service.jobs.get(job.id)
        with pytest.raises(NotFound):
            service.jobs.delete(job.id)

    def test_job_is_deleted_even_if_the_reply_is_lost(self, service, connect, proxy):
        job = service.submit("a")
        proxy.cut_after = [20]
        assert connect(proxy.url).jobs.delete(job.id) is None
        with pytest.raises(NotFound):
            service.jobs.get(job.id)


class TestDownload:
    def test_path_gets_the_video(self, service, finished, tmp_path):
        (tmp_path / "out.mp4").write_bytes(b"x" * 400_000)
        service.jobs.download(finished.id, tmp_path / "out.mp4")
        assert (tmp_path / "out.mp4").read_bytes() == VIDEO
        assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "upload"}

    def test_open_file_gets_the_video(self, service, finished):
        file = io.BytesIO()
        service.jobs.download(finished, file)
        assert file.getvalue() == VIDEO

    def test_download_continues_where_it_was_cut(self, connect, proxy, finished):
        proxy.cut_after = [100, *[120_000] * 9]  # fewer bytes than the video has
        file = io.BytesIO()
        connect(proxy.url).jobs.download(finished, file)
        assert file.getvalue() == VIDEO
        assert proxy.num_connections == 4

    def test_download_continues_after_a_stall(self, connect, proxy, finished):
        proxy.stall_after = [100_000]
        file = io.BytesIO()
        connect(proxy.url, request_timeout_s=0.3).jobs.download(finished, file)
        assert file.getvalue() == VIDEO

    def test_slow_download_is_finished_however_long_it_takes(self, connect, proxy, finished):
        proxy.piece_bytes, proxy.pause_s = 10_000, 0.02
        file = io.BytesIO()
        connect(proxy.url, retry=RetryPolicy(total_s=0.1)).jobs.download(finished, file)
        assert file.getvalue() == VIDEO
        assert proxy.num_connections == 1

    def test_server_without_ranges_sends_the_video_again_from_its_start(self, connect, finished):
        cuts = [100_000, 250_000, len(VIDEO)]

        def answer(request):
            request.send_response(200)
            request.send_header("Content-Length", str(len(VIDEO)))
            request.end_headers()
            request.wfile.write(VIDEO[: cuts.pop(0)])
            request.close_connection = True

        file = io.BytesIO()
        with host(answer) as url:
            connect(url.removesuffix("/file")).jobs.download(finished, file)
        assert file.getvalue() == VIDEO

    def test_redirect_to_an_object_store_is_followed_without_the_key(self, connect, finished):
        keys = []

        def store(request):
            keys.append(request.headers.get("Authorization"))
            sending(VIDEO)(request)

        file = io.BytesIO()
        with host(store) as link, host(redirecting(link, 307)) as url:
            connect(url.removesuffix("/file"), "secret").jobs.download(finished, file)
        assert (file.getvalue(), keys) == (VIDEO, [None])

    @pytest.mark.parametrize("content", [VIDEO[:-1], VIDEO + b"x", VIDEO[:-1] + bytes([VIDEO[-1] ^ 1])])
    def test_other_content_is_refused_and_leaves_no_file(self, connect, finished, tmp_path, content):
        def answer(request):
            start = int(request.headers.get("Range", "bytes=0-")[6:-1])
            sending(content[start:], 416 if start == len(content) else 200 if start == 0 else 206)(request)

        target = tmp_path / "out.mp4"
        with host(answer) as url, pytest.raises(IncompleteDownload, match="did not arrive whole"):
            connect(url.removesuffix("/file")).jobs.download(finished, target)
        assert {path.name for path in tmp_path.iterdir()} == {"upload"}

    def test_service_that_stays_away_in_mid_download_is_unavailable(self, connect, proxy, finished, tmp_path):
        proxy.cut_after = [100_000, *[0] * 100]
        policy = RetryPolicy(total_s=0.2, first_delay_s=0.01)
        with pytest.raises(ServiceUnavailable):
            connect(proxy.url, retry=policy).jobs.download(finished, tmp_path / "out.mp4")
        assert {path.name for path in tmp_path.iterdir()} == {"upload"}

    def test_job_without_a_video_is_refused(self, service, tmp_path):
        job = service.submit("a")
        with pytest.raises(JobNotReady):
            service.jobs.download(job.id, tmp_path / "out.mp4")
        service.jobs.cancel(job.id)
        with pytest.raises(JobCancelled):
            service.jobs.download(job.id, tmp_path / "out.mp4")

    def test_folder_that_does_not_exist_is_reported(self, service, finished, tmp_path):
        with pytest.raises(FileNotFoundError):
            service.jobs.download(finished, tmp_path / "no" / "out.mp4")
