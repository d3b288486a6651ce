from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from jobs.record import JobError
from tests.worker.running_worker import ROOT
from worker.rank.consensus import EXIT_FAILED_ALONE, IDLE_TIMEOUT, GroupBroken, StepOutcome, combine

CONTINUE = StepOutcome()
OUT_OF_MEMORY = StepOutcome(error=JobError(code="out_of_memory", message="too large", retryable=False))
DISK_FULL = StepOutcome(error=JobError(code="disk_full", message="full", retryable=True))
BUG = StepOutcome(
    error=JobError(code="generation_failed", message="bug", retryable=False), aftermath="unknown"
)
BROKEN = StepOutcome(error=OUT_OF_MEMORY.error, aftermath="broken")


def test_job_continues_without_stop_request_and_error():
    assert combine([CONTINUE, CONTINUE, CONTINUE]) == CONTINUE
    assert not CONTINUE.ends_job


@pytest.mark.parametrize("reason", ["cancel", "drain", "preempt", "deadline", "lease_lost"])
def test_all_ranks_follow_the_stop_request_of_the_leader(reason):
    decision = combine([StepOutcome(stop_request=reason), CONTINUE])
    assert (decision.stop_request, decision.ends_job) == (reason, True)


def test_error_of_all_ranks_fails_the_job_alone():
    assert combine([BUG, BUG]) == BUG
    assert combine([OUT_OF_MEMORY, OUT_OF_MEMORY]) == OUT_OF_MEMORY
    assert BUG.ends_job


def test_contained_error_of_one_rank_fails_the_job_alone():
    assert combine([DISK_FULL, CONTINUE]) == DISK_FULL
    assert combine([CONTINUE, OUT_OF_MEMORY]) == OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("outcomes", "failed", "cause"),
    [
        ([BUG, CONTINUE], [0], None),
        ([CONTINUE, BUG], [1], None),
        ([BUG, BUG, CONTINUE], [0, 1], None),
        ([BUG, OUT_OF_MEMORY, CONTINUE], [0, 1], "out_of_memory"),
        ([CONTINUE, BROKEN], [1], "out_of_memory"),
        ([BROKEN, BUG], [0, 1], "out_of_memory"),
        ([BROKEN, BROKEN], [0, 1], "out_of_memory"),
    ],
)
def test_rank_that_may_not_be_sound_breaks_the_group_and_a_known_error_ends_the_job(outcomes, failed, cause):
    with pytest.raises(GroupBroken) as caught:
        combine(outcomes)
    assert str(caught.value).startswith(f"ranks {failed} failed: ")
    assert (caught.value.cause.code if caught.value.cause else None) == cause


@pytest.mark.parametrize("outcomes", [[OUT_OF_MEMORY, BUG], [BUG, OUT_OF_MEMORY]])
def test_different_errors_of_all_ranks_fail_the_job_with_the_known_one(outcomes):
    assert combine(outcomes) == OUT_OF_MEMORY


def test_error_takes_precedence_over_stop_request():
    assert combine([StepOutcome(stop_request="cancel"), OUT_OF_MEMORY]) == OUT_OF_MEMORY


def test_error_of_a_group_of_one_rank_fails_the_job_alone():
    assert combine([BUG]) == BUG


@contextmanager
def started(module: str, folder: Path, *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Run two ranks, and kill those that do not end."""
    command = [sys.executable, "-m", module]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "store"), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def outputs(ranks: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Return the exit status and the output of each rank."""
    texts = [rank.communicate(timeout=600)[0] for rank in ranks]
    return [(rank.returncode, text.strip()) for rank, text in zip(ranks, texts, strict=True)]


@pytest.mark.integration
def test_ranks_agree_and_a_rank_that_fails_alone_exits(tmp_path):
    with started("tests.worker.rank.deciding_rank", tmp_path) as ranks:
        (leader_status, leader_output), (status, output) = outputs(ranks)
    decisions = "\n".join(
        [
            "continue: None None",
            "stop: drain None",
            "contained: None disk_full",
            "broken: ranks [1] failed",
        ]
    )
    assert output == f"{decisions}\nfails while rank 0 waits elsewhere"
    assert status == EXIT_FAILED_ALONE
    assert leader_output == f"{decisions}\nnoticed that rank 1 died"
    assert leader_status == 0


@pytest.mark.faults
def test_ranks_run_a_job_after_idling_longer_than_the_collective_timeout(tmp_path):
    # A short timeout has the same effect as a long wait.
    with started("tests.worker.rank.idle_rank", tmp_path, "consensus") as ranks:
        assert outputs(ranks) == [(0, "job 2"), (0, "job 2")]


@pytest.mark.faults
def test_ranks_fail_if_they_idle_in_the_process_group_of_the_model(tmp_path):
    with started("tests.worker.rank.idle_rank", tmp_path, "model") as ranks:
        assert all(status for status, _ in outputs(ranks))


def test_idle_timeout_exceeds_twelve_hours():
    assert timedelta(hours=12) < IDLE_TIMEOUT
