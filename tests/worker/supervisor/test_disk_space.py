"""Free space is checked on real folders with fake values of free space."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.waiting import wait_until
from worker.supervisor.disk_space import DiskSpace


def is_enough(folders: list[Path], min_free_bytes: int = 100) -> bool:
    space = DiskSpace(folders, min_free_bytes)
    space.check()
    return space.is_enough


@pytest.fixture
def free(monkeypatch) -> dict[Path, int]:
    """Free bytes by folder, 100 by default; -1 makes the disk unreadable."""
    free: dict[Path, int] = {}

    def disk_usage(path: Path) -> SimpleNamespace:
        if free.get(path) == -1:
            raise OSError("stale file handle")
        return SimpleNamespace(free=free.get(path, 100))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return free


def test_limits_are_compared_with_the_space_of_a_real_disk(tmp_path):
    assert is_enough([tmp_path], 0)
    assert not is_enough([tmp_path], 1 << 60)


def test_every_disk_must_have_space(free, tmp_path):
    spool, storage = tmp_path / "spool", tmp_path / "storage"
    spool.mkdir()
    storage.mkdir()
    assert is_enough([spool, storage])
    free[storage] = 99
    assert not is_enough([spool, storage])


def test_parent_counts_if_the_folder_does_not_exist(free, tmp_path):
    free[tmp_path] = 1
    assert not is_enough([tmp_path / "not" / "yet"])


def test_unreadable_disk_does_not_count_as_full(free, tmp_path):
    free[tmp_path] = -1
    assert is_enough([tmp_path])


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_spool_that_cannot_be_written_counts_as_full_until_it_can(tmp_path, caplog, number):
    caplog.set_level(logging.INFO)
    failures = [OSError(number, os.strerror(number), f"tmp{attempt}") for attempt in range(2)]

    def check_writable() -> None:
        if failures:
            raise failures.pop()

    space = DiskSpace([tmp_path], 0, check_writable)
    assert [space.check() for _ in range(3)] == [False, False, True]
    assert caplog.text.count(f"no job is claimed: the spool cannot be written: {os.strerror(number)}") == 1
    assert caplog.text.count("take files again") == 1


def test_change_is_logged_once(free, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    space = DiskSpace([tmp_path], 100)
    free[tmp_path] = 99
    space.check()
    space.check()
    assert caplog.text.count("no job is claimed: less than 100 bytes are free") == 1
    assert str(tmp_path) in caplog.text
    assert "take files again" not in caplog.text
    free[tmp_path] = 100
    space.check()
    assert caplog.text.count("the disks take files again") == 1


def test_thread_checks_until_it_is_stopped(free, tmp_path):
    space = DiskSpace([tmp_path], 100, check_every_s=0.01)
    space.start()
    free[tmp_path] = 99
    wait_until(lambda: not space.is_enough)
    free[tmp_path] = 100
    wait_until(lambda: space.is_enough)
    space.stop()
    space.join(30)
    assert not space.is_alive()
