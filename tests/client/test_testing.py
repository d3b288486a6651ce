"""The fake service behaves as the real one, and does what the test that uses it says."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import pytest

from longcat_video_client import (
    Conflict,
    InvalidRequest,
    JobFailed,
    JobNotReady,
    JobVideo,
    NotFound,
    RateLimited,
    RetryPolicy,
    ServiceUnavailable,
    Timeout,
)
from longcat_video_client.testing import Failure, FakeService, Success, Unfinished
from service.jobs.pools import FleetView
from service.jobs.views import JobPage, JobView


@pytest.fixture
def at(connect):
    """Return a function that connects to a fake service."""
    return lambda fake, **options: connect("http://fake", transport=fake, **options)


def test_jobs_end_as_scripted_and_later_ones_succeed(at):
    service = at(FakeService(Success(b"first"), Failure("out_of_memory", retryable=True)))
    file = io.BytesIO()
    updates: list[str] = []
    job = service.generate("a", output=file, on_update=lambda job: updates.append(job.status))
    assert (job.status, file.getvalue()) == ("succeeded", b"first")
    assert list(dict.fromkeys(updates)) == ["queued", "running", "succeeded"]
    with pytest.raises(JobFailed) as caught:
        service.generate("b")
    assert (caught.value.code, caught.value.retryable) == ("out_of_memory", True)
    assert service.generate("c").status == "succeeded"


def test_fake_shows_what_was_submitted(at):
    fake = FakeService()
    service = at(fake)
    service.submit("a", seed=7, idempotency_key="k")
    service.submit(["a", "b"], image=b"\r\n--an image\r\n\0", metadata={"x": "y"}, refine=True)
    first, second = fake.submissions
    assert (first.fields, first.files, first.idempotency_key) == ({"prompt": "a", "seed": 7}, {}, "k")
    assert second.fields == {"prompts": ["a", "b"], "metadata": {"x": "y"}, "refine": True}
    assert second.files == {"image": b"\r\n--an image\r\n\0"}


def test_same_key_returns_the_same_job(at):
    fake = FakeService()
    jobs = [at(fake).submit("a", idempotency_key="k") for _ in range(2)]
    assert jobs[0].id == jobs[1].id
    assert len(fake.submissions) == 1


def test_unknown_option_missing_prompt_and_wrong_length_are_refused(at):
    for given in ({"prompt": "a", "extra": {"motion": 1}}, {}, {"prompt": "a", "num_frames": 16}):
        with pytest.raises(InvalidRequest):
            at(FakeService()).submit(**given)


def test_refused_requests_and_broken_connections_are_repeated(at):
    fake = FakeService()
    fake.refuse_next(503, "busy", retry_after_s=0)
    fake.disconnect_next()
    assert at(fake).submit("a").status == "queued"
    assert len(fake.submissions) == 1


def test_refusals_reach_a_client_that_does_not_retry(at):
    fake = FakeService()
    fake.refuse_next(429, "limit_reached", retry_after_s=9)
    fake.disconnect_next()
    fake.refuse_next(422, "invalid_request", field="seed")
    service = at(fake, retry=RetryPolicy(total_s=0))
    with pytest.raises(RateLimited) as limited:
        service.submit("a")
    assert limited.value.retry_after_s == 9.0
    with pytest.raises(ServiceUnavailable):
        service.submit("a")
    with pytest.raises(InvalidRequest) as refused:
        service.submit("a")
    assert refused.value.field == "seed"


def test_unfinished_job_runs_until_it_is_cancelled(at):
    service = at(FakeService(Unfinished()))
    job = service.submit("a")
    with pytest.raises(Timeout):
        service.jobs.wait(job.id, timeout_s=0.1)
    with pytest.raises(JobNotReady):
        service.jobs.download(job.id, io.BytesIO())
    assert service.jobs.cancel(job.id).status == "cancelled"
    assert service.jobs.wait(job.id).status == "cancelled"


def test_job_shows_whether_it_met_its_deadline(at):
    service = at(FakeService(Success(), Success(), Failure(), Success(), Unfinished(), run_s=60))
    outcomes = []
    for deadline_s in (60, 59, 600, None):
        job = service.jobs.wait(service.submit("a", deadline_s=deadline_s).id)
        outcomes.append((job.status, job.deadline_met))
    assert outcomes == [("succeeded", True), ("succeeded", False), ("failed", False), ("succeeded", None)]
    job = service.submit("a", deadline_s=600)
    assert (job.deadline_at - job.predicted_finish_at).total_seconds() == pytest.approx(540)
    cancelled = service.jobs.cancel(job.id)
    assert (cancelled.deadline_met, cancelled.predicted_finish_at) == (None, None)


def test_late_job_has_a_warning_or_is_refused(at):
    fake = FakeService(run_s=60)
    service = at(fake)
    assert service.submit("a", deadline_s=60, refuse_if_late=True).warnings == ()
    (warning,) = service.submit("a", deadline_s=30).warnings
    with pytest.raises(Conflict) as refused:
        service.submit("a", deadline_s=30, refuse_if_late=True)
    assert (refused.value.code, refused.value.field) == ("deadline_too_early", "deadline_s")
    assert warning == "deadline_s: the video is expected 60 s after submission, later than 30 s"
    assert len(fake.submissions) == 2


def test_jobs_can_be_listed_and_deleted(at):
    service = at(FakeService())
    jobs = [service.submit(str(number)) for number in range(3)]
    assert [job.id for job in service.jobs.list()] == [job.id for job in reversed(jobs)]
    assert [job.id for job in service.jobs.list(limit=1)] == [jobs[-1].id]
    service.jobs.delete(jobs[0].id)
    with pytest.raises(NotFound):
        service.jobs.get(jobs[0].id)
    service.jobs.wait(jobs[1].id)
    with pytest.raises(Conflict):
        service.jobs.cancel(jobs[1].id)
    assert [job.id for job in service.jobs.list(status="succeeded")] == [jobs[1].id]
    assert [job.id for job in service.jobs.list(text=jobs[1].request.prompt.upper())] == [jobs[1].id]


@pytest.mark.parametrize("outcome", [Success(), Failure(), Unfinished()])
def test_replies_have_the_form_of_the_real_service(outcome):
    fake = FakeService(Success(), Success(), outcome)
    with httpx.Client(transport=fake, base_url="http://fake") as http:
        job_view(http.post("/generate", json={"prompt": "b", "num_videos": 2}).json())
        form: dict[str, Any] = {"prompt": (None, "a"), "image": ("image", b"an image"), "seed": (None, "3")}
        job_id = job_view(http.post("/generate", files=form).json()).id
        for _ in range(3):
            view = job_view(http.get(f"/jobs/{job_id}").json())
        assert view.status == {Success: "succeeded", Failure: "failed", Unfinished: "running"}[type(outcome)]
        assert view.request.seed == 3
        page = http.get("/jobs").json()
        assert (page.keys(), job_view(page["jobs"][0])) == (JobPage.model_fields.keys(), view)
        assert [job["batch"] is None for job in page["jobs"]] == [True, False, False]
        assert FleetView.model_validate(http.get("/capability").json()).model == "LongCat-Video"
        assert http.get("/nowhere").status_code == 404


def job_view(job: dict[str, Any]) -> JobView:
    """Validate a reply as the view that the service would send."""
    return JobView.model_validate_json(json.dumps(job))


def test_several_videos_are_a_batch(at):
    fake = FakeService(Success(b"first"), Failure(), Unfinished())
    service = at(fake)
    first = service.submit("a", num_videos=3, seed=4, idempotency_key="k")
    assert service.submit("a", num_videos=3, seed=4, idempotency_key="k").batch == first.batch
    statuses = [service.jobs.wait(job_id).status for job_id in first.all_ids[:2]]
    assert (statuses, len(fake.submissions)) == (["succeeded", "failed"], 1)
    other = service.submit("b")
    listed = list(service.jobs.list(batch=first.batch.id))
    assert [job.request.seed for job in listed] == [6, 5, 4]
    cancelled = service.jobs.cancel_batch(first.batch.id)
    assert [job.status for job in cancelled] == ["succeeded", "failed", "cancelled"]
    assert (other.batch, service.jobs.get(other.id).status) == (None, "queued")
    with pytest.raises(NotFound):
        service.jobs.cancel_batch("nothing")


def test_video_of_a_finished_job_is_an_input(at):
    fake = FakeService(Success(), Unfinished())
    service = at(fake)
    finished, running = service.generate("a"), service.submit("b")
    continued = service.submit("on", video=finished, image=JobVideo(finished.id, -2))
    assert continued.task == "video_continuation"
    assert fake.submissions[-1].fields["image"] == {"job": finished.id, "frame": -2}
    with pytest.raises(Conflict) as unfinished:
        service.submit("on", video=running)
    assert unfinished.value.field == "video.job"
    with pytest.raises(InvalidRequest) as unknown:
        service.submit("on", image=JobVideo("nobody"))
    assert unknown.value.field == "image.job"
    assert len(fake.submissions) == 3


def test_retry_repeats_the_request_with_changes(at):
    fake = FakeService()
    client = at(fake)
    job = client.submit("a ball", seed=7)
    again = client.jobs.retry(job.id, seed=8)
    assert (again.request.prompt, again.request.seed) == ("a ball", 8)
    assert [submission.fields["seed"] for submission in fake.submissions] == [7, 8]
