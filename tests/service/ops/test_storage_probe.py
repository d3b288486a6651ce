"""The storage is up while it answers checks in the background; it is down once it fails or hangs."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from jobs.errors import Unavailable
from jobs.storage.folder import FolderStorage
from service.ops import storage_probe
from service.ops.storage_probe import StorageProbe
from tests.waiting import wait_until


class FakeStorage(FolderStorage):
    """A storage whose checks end as the test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.error: Exception | None = None
        self.may_answer = Event()
        self.may_answer.set()

    def check(self) -> None:
        self.may_answer.wait()
        if self.error:
            raise self.error


@pytest.fixture
def storage(tmp_path):
    return FakeStorage(tmp_path)


@pytest.fixture
def probe(storage, monkeypatch):
    monkeypatch.setattr(storage_probe, "MAX_SILENCE_S", 0.2)
    probe = StorageProbe(storage)
    with probe.running(interval_s=0.01):
        yield probe
        storage.may_answer.set()


def test_storage_that_never_answered_is_not_up(storage):
    assert not StorageProbe(storage).is_up


@pytest.mark.parametrize("error", [Unavailable("the store cannot be reached"), OSError("stale file handle")])
def test_storage_is_down_while_it_fails_and_up_afterwards(storage, probe, error):
    wait_until(lambda: probe.is_up)
    storage.error = error
    wait_until(lambda: not probe.is_up)
    storage.error = None
    wait_until(lambda: probe.is_up)


def test_storage_is_down_while_it_hangs(storage, probe):
    wait_until(lambda: probe.is_up)
    storage.may_answer.clear()
    wait_until(lambda: not probe.is_up)
    storage.may_answer.set()
    wait_until(lambda: probe.is_up)


def test_scrape_shows_whether_the_storage_is_up(client, monkeypatch):
    def up() -> float:
        lines = client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("longcat_storage_up "))

    wait_until(lambda: up() == 1)
    monkeypatch.setattr(storage_probe, "MAX_SILENCE_S", -1.0)
    assert up() == 0
