"""Disks that have room and disks that have none; their sizes are staged, the folders are real."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from tests.waiting import wait_until
from worker.supervisor.disk_space import DiskSpace


def has_room(folders: list[Path], min_free_bytes: int = 100) -> bool:
    room = DiskSpace(folders, min_free_bytes)
    room.look()
    return room.is_enough


@pytest.fixture
def free(monkeypatch) -> dict[Path, int]:
    """Bytes that are free on the disk of a folder; 100 where nothing else is said."""
    free: dict[Path, int] = {}

    def disk_usage(path: Path) -> SimpleNamespace:
        if free.get(path) == -1:
            raise OSError("stale file handle")
        return SimpleNamespace(free=free.get(path, 100))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return free


def test_a_real_disk_has_room_for_nothing_and_not_for_everything(tmp_path):
    assert has_room([tmp_path], 0)
    assert not has_room([tmp_path], 1 << 60)


def test_every_disk_has_to_have_room(free, tmp_path):
    spool, storage = tmp_path / "spool", tmp_path / "storage"
    spool.mkdir()
    storage.mkdir()
    assert has_room([spool, storage])
    free[storage] = 99
    assert not has_room([spool, storage])


def test_of_a_folder_that_is_not_there_yet_the_one_above_counts(free, tmp_path):
    free[tmp_path] = 1
    assert not has_room([tmp_path / "not" / "yet"])


def test_a_disk_that_cannot_be_asked_is_not_taken_for_full(free, tmp_path):
    free[tmp_path] = -1
    assert has_room([tmp_path])


def test_a_change_is_logged_once(free, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    room = DiskSpace([tmp_path], 100)
    free[tmp_path] = 99
    room.look()
    room.look()
    assert caplog.text.count("no job is taken: less than 100 bytes are free") == 1
    assert str(tmp_path) in caplog.text
    free[tmp_path] = 100
    room.look()
    assert caplog.text.count("there is room again") == 1


def test_it_looks_until_it_is_stopped(free, tmp_path):
    room, stop = DiskSpace([tmp_path], 100), Event()
    thread = Thread(target=room.keep_looking, args=(stop, 0.01))
    thread.start()
    free[tmp_path] = 99
    wait_until(lambda: not room.is_enough)
    free[tmp_path] = 100
    wait_until(lambda: room.is_enough)
    stop.set()
    thread.join()
