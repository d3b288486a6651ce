"""Of the failures of several ranks, the supervisor reads the first."""

from __future__ import annotations

from pathlib import Path

from worker.first_failure import MAX_LENGTH, read_failure, write_failure


def test_first_failure_stays(tmp_path):
    file = tmp_path / "failure"
    assert read_failure(file) is None
    write_failure(file, 1, "OutOfMemoryError: CUDA out of memory")
    write_failure(file, 0, "RuntimeError: Connection closed by peer")
    assert read_failure(file) == "rank 1: OutOfMemoryError: CUDA out of memory"


def test_long_reason_is_cut(tmp_path):
    write_failure(tmp_path / "failure", 0, "x" * 2 * MAX_LENGTH)
    assert len(read_failure(tmp_path / "failure") or "") == MAX_LENGTH


def test_rank_whose_folder_is_gone_ends_without_another_error(tmp_path):
    write_failure(tmp_path / "gone" / "failure", 0, "a bug")
    write_failure(None, 0, "a bug")
    assert list(Path(tmp_path).iterdir()) == []
