"""Test that the verdict counts each broken guarantee, and no failure that a fault explains."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from jobs.order import InputFile
from jobs.record import Job
from jobs.store.holder import Lease
from tests.chaos.campaign import Course, Ordered, PastFault, Plan
from tests.chaos.client import ServerError
from tests.chaos.report import report, table
from tests.chaos.steps import StepLog
from tests.chaos.verdict import Verdict, _is_explained, _is_kept, is_same, recoveries, unexcused
from tests.jobs.examples import ORDER, a_result

START_S, END_S = 1767225600.0, 1767225660.0


def order(
    status: str, code: str | None = None, *, cancel: bool | None = None, video: int | None = 0
) -> Ordered:
    error = {"code": code} if code else None
    job = {"status": status, "error": error, "result": {}}
    return Ordered(0, video, "mine", START_S, cancel, job, END_S)


def fault(kind: str, job: str | None = "mine", after_s: float = 10.0) -> PastFault:
    return PastFault(kind, job, START_S + after_s, START_S + after_s + 1, 1.0)


def test_undisturbed_job_must_succeed():
    assert _is_explained(order("succeeded"), [])
    assert not _is_explained(order("failed", "worker_crashed"), [])
    assert not _is_explained(order("cancelled"), [])


def test_cancelled_job_must_not_succeed():
    assert _is_explained(order("cancelled", cancel=True), [])
    assert not _is_explained(order("succeeded", cancel=True), [])


def test_job_whose_cancel_was_not_answered_may_end_either_way():
    assert _is_explained(order("cancelled", cancel=False), [])
    assert _is_explained(order("succeeded", cancel=False), [])


def test_poison_must_fail_as_worker_crashed():
    assert _is_explained(order("failed", "worker_crashed", video=None), [])
    assert not _is_explained(order("succeeded", video=None), [])


@pytest.mark.parametrize(("crashes", "explained"), [(2, False), (3, True)])
def test_failure_is_explained_by_as_many_crashes_as_attempts(crashes, explained):
    faults = [fault("rank 0 killed")] * crashes
    assert _is_explained(order("failed", "worker_crashed"), faults) is explained


def test_crashes_at_another_time_do_not_explain_a_failure():
    faults = [fault("rank 0 killed", after_s=3600)] * 3
    assert not _is_explained(order("failed", "worker_crashed"), faults)


def test_only_the_affected_job_may_run_out_of_memory():
    kind = "out of memory on all ranks"
    assert _is_explained(order("failed", "out_of_memory"), [fault(kind)])
    assert not _is_explained(order("failed", "out_of_memory"), [fault(kind, job="another")])


def record(**fields) -> Job:
    image = InputFile(
        key="jobs/mine/inputs/image.png", media_type="image/png", size_bytes=1, sha256="0", width=1, height=1
    )
    order = ORDER.model_copy(update={"image": image})
    return Job(id="mine", status="failed", order=order, created_at=datetime.now(UTC), **fields)


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("inputs/image.png", True),
        ("inputs/other.png", False),
        ("2/video.mp4", True),
        ("1/video.mp4", False),
        ("22/video.mp4", False),
        ("state/state-1/state-1.safetensors", False),
    ],
)
def test_only_inputs_and_files_beside_the_result_are_kept(name, is_kept):
    finished = record(result=a_result(Lease(record(), fence=2, duration_s=1.0)))
    assert _is_kept(f"jobs/mine/{name}", finished) is is_kept
    assert _is_kept(f"jobs/mine/{name}", record()) is (name == "inputs/image.png")
    assert not _is_kept(f"jobs/mine/{name}", None)


def test_recoveries_are_counted_by_kind():
    times = [3.0, None, 1.0]
    faults = [PastFault("redis killed", None, 0, 1, recovery_s) for recovery_s in times]
    found = recoveries(faults)["redis killed"]
    assert (found.count, found.never, found.median_s, found.worst_s) == (3, 1, 2.0, 3.0)


def test_any_broken_guarantee_makes_the_verdict_bad():
    verdict = Verdict(accepted=1, ended={"succeeded": 1})
    assert verdict.is_good
    for name in verdict.violations:
        broken: dict[str, Any] = {name: ["it"]}
        assert not replace(verdict, **broken).is_good


@pytest.mark.parametrize(
    ("status", "sent_s", "answered_s", "excused"),
    [
        (503, 0.5, 0.6, True),
        (503, 0.5, 60, True),
        (503, 60, 61, False),
        (503, -2, -1, False),
        (500, 0.5, 0.6, False),
    ],
)
def test_only_503_during_an_outage_is_excused(status, sent_s, answered_s, excused):
    course = Course(videos=[], faults=[fault("redis full", after_s=0)], began=START_S - 10)
    found = [ServerError(START_S + sent_s, START_S + answered_s, status, "GET /jobs")]
    assert (unexcused(found, course) == []) is excused


def test_work_counts_all_steps_and_the_distinct_ones(tmp_path):
    log = StepLog(tmp_path / "steps.log")
    log.add("a-0", "mine", None)
    for step in (1, 2, 2, 3):
        log.add("a-0", "mine", (0, "denoise", step))
    log.add("a-0", "another", (0, "denoise", 1))
    assert log.work({"mine"}) == (4, 3)


@pytest.mark.parametrize(
    ("change", "is_exact", "is_same_video"),
    [(0, True, True), (1, True, False), (1, False, True), (9, False, False)],
)
def test_videos_are_compared_to_the_bit_or_but_for_rounding(change, is_exact, is_same_video):
    frames = np.full((5, 8, 8, 3), 100, np.uint8)
    assert is_same(frames + np.uint8(change), frames, is_exact=is_exact) == is_same_video
    assert not is_same(frames[1:], frames, is_exact=is_exact)


def test_job_has_resumed_once_another_leader_runs_it(tmp_path):
    log = StepLog(tmp_path / "steps.log")
    log.add("a-0", "mine", None)
    assert log.running_again("mine", 0.0, {os.getpid()}) is None
    assert log.running_again("mine", 0.0, {0}) is not None


def test_report_explains_each_count_and_names_each_violation():
    verdict = Verdict(accepted=2, ended={"succeeded": 1, "lost": 1}, lost=["mine"])
    verdict.recoveries = recoveries([fault("redis killed")])
    text = report(
        Plan(jobs=2, seed=1, minutes=1.0), Course(videos=[], faults=[fault("redis killed")]), verdict
    )
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if "|" in line}
    for name in verdict.violations:
        count, meaning = rows[name.replace("_", " ")]
        assert int(count) == (name == "lost")
        assert meaning.strip()
    assert [cell.strip() for cell in rows["redis killed"]] == ["1", "1.0", "1.0"]
    assert "- lost: mine" in text


def test_table_is_aligned():
    assert table(["a", "b"], [["long", 1]]) == "| a    | b |\n| ---- | - |\n| long | 1 |"
