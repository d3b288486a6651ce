"""Records are read as this release, or another one, wrote them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from jobs.errors import UnreadableRecord
from jobs.order import SCHEMA_VERSION
from jobs.record import ENDED, Job, JobError, JobEvent, Progress
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


def test_complete_record_is_read():
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


def test_missing_fields_have_defaults():
    job = Job.from_hash({name: HASH[name] for name in ("id", "order", "created_ms")} | {"status": "queued"})
    assert (job.attempt, job.started_at, job.progress, job.error, job.cancel_requested) == (
        0,
        None,
        None,
        None,
        False,
    )


@pytest.mark.parametrize("name", ["id", "status", "order", "created_ms"])
def test_record_without_a_required_field_is_unreadable(name: str):
    with pytest.raises(UnreadableRecord):
        Job.from_hash({key: value for key, value in HASH.items() if key != name})


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_fraction_is_between_0_and_1(fraction: float):
    with pytest.raises(ValidationError):
        Progress(phase="denoise", fraction=fraction)


def test_final_states_are_ended():
    job = Job.from_hash(HASH)
    statuses = ("queued", "running", "uploading", "succeeded", "failed", "cancelled")
    assert {s for s in statuses if job.model_copy(update={"status": s}).ended} == ENDED
    assert len(ENDED) == 3


def test_unknown_fields_are_ignored():
    later = {
        "schema_version": "2",
        "region": "eu",
        "progress": HASH["progress"].replace("}", ', "speed": 3}'),
        "error": HASH["error"].replace("}", ', "hint": "buy disks"}'),
    }
    assert Job.from_hash(HASH | later) == Job.from_hash(HASH)


@pytest.mark.parametrize(
    "broken",
    [
        {"order": "{"},
        {"order": '{"plan": {}}'},
        {"status": "paused"},
        {"created_ms": "soon"},
        {"created_ms": "9" * 30},
    ],
    ids=str,
)
def test_broken_required_fields_make_a_record_unreadable(broken):
    with pytest.raises(UnreadableRecord):
        Job.from_hash(HASH | broken)


def test_unpaired_surrogates_are_replaced():
    stored = json.dumps({"k\udfff": "\ud800 \\ud800 ü 🎬"})
    assert Job.from_hash(HASH | {"metadata": stored}).metadata == {"k\ufffd": "\ufffd \\ud800 ü 🎬"}


def test_order_of_a_later_version_is_unreadable():
    order = json.loads(HASH["order"]) | {"schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(
        UnreadableRecord, match=f"version {SCHEMA_VERSION + 1} is later than {SCHEMA_VERSION}"
    ):
        Job.from_hash(HASH | {"order": json.dumps(order)})


PLAIN = {"id", "owner", "group", "webhook_url", "request_id", "traceparent"}
"""Fields that any text is a value of."""

OPTIONAL = sorted(
    name
    for name in HASH.keys() - PLAIN - {"status", "order", "created_ms"}
    if name.replace("_ms", "_at") in Job.model_fields
)


@pytest.mark.parametrize("name", OPTIONAL)
def test_broken_optional_field_has_its_default(name: str):
    field = name.replace("_ms", "_at")
    job = Job.from_hash(HASH | {name: "{"})
    assert getattr(job, field) == Job.model_fields[field].get_default(call_default_factory=True)
    assert job.unread == (field,)
    others = {other: getattr(job, other) for other in Job.model_fields if other not in {field, "unread"}}
    whole = Job.from_hash(HASH)
    assert others == {other: getattr(whole, other) for other in others}


def test_event_of_an_unknown_kind_is_unreadable():
    entry = {b"status": b"running", b"progress": b'{"phase": "dream"}'}
    with pytest.raises(UnreadableRecord):
        JobEvent.from_entry(b"1-0", entry)
