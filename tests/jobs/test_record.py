"""The record as Redis holds it, and as it is read back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from jobs.record import ENDED, Job, JobError, Progress
from tests.jobs.examples import ORDER

HASH = {
    "id": "abc",
    "status": "failed",
    "order": ORDER.model_dump_json(),
    "priority": "low",
    "owner": "me",
    "metadata": '{"a": "ü"}',
    "webhook_url": "https://example.com",
    "progress": '{"phase": "denoise", "step": 3, "num_steps": 4, "fraction": 0.5, "eta_s": null}',
    "attempt": "2",
    "created_ms": "1700000000123",
    "started_ms": "1700000001000",
    "finished_ms": "1700000002000",
    "expires_ms": "1700000003000",
    "cancel_requested": "1",
    "group": "a",
    "error": '{"code": "disk_full", "message": "no room", "retryable": true}',
    "timings_s": '{"denoise": 1.25}',
    "fence": "7",
    "lease_ms": "30000",
}


def test_a_whole_record_is_read():
    assert Job.from_hash(HASH) == Job(
        id="abc",
        status="failed",
        order=ORDER,
        priority="low",
        owner="me",
        metadata={"a": "ü"},
        webhook_url="https://example.com",
        progress=Progress(phase="denoise", step=3, num_steps=4, fraction=0.5),
        attempt=2,
        created_at=datetime(2023, 11, 14, 22, 13, 20, 123000, UTC),
        started_at=datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC),
        finished_at=datetime(2023, 11, 14, 22, 13, 22, tzinfo=UTC),
        expires_at=datetime(2023, 11, 14, 22, 13, 23, tzinfo=UTC),
        cancel_requested=True,
        group="a",
        error=JobError(code="disk_full", message="no room", retryable=True),
        timings_s={"denoise": 1.25},
    )


def test_what_is_left_out_has_its_default():
    job = Job.from_hash({name: HASH[name] for name in ("id", "order", "created_ms")} | {"status": "queued"})
    assert (job.attempt, job.started_at, job.progress, job.error, job.cancel_requested) == (
        0,
        None,
        None,
        None,
        False,
    )


@pytest.mark.parametrize("name", ["id", "status", "order", "created_ms"])
def test_a_record_without_what_it_must_have_is_refused(name: str):
    with pytest.raises(ValidationError):
        Job.from_hash({key: value for key, value in HASH.items() if key != name})


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_no_more_than_all_of_a_job_is_done(fraction: float):
    with pytest.raises(ValidationError):
        Progress(phase="denoise", fraction=fraction)


def test_a_job_has_ended_in_the_final_states():
    job = Job.from_hash(HASH)
    statuses = ("queued", "running", "uploading", "succeeded", "failed", "cancelled")
    assert {s for s in statuses if job.model_copy(update={"status": s}).ended} == ENDED
    assert len(ENDED) == 3
