"""The command that lists files without a job."""

from __future__ import annotations

import pytest

from jobs.storage.keys import state_key, video_key
from service.ops.orphans import main


@pytest.fixture
def _installed(monkeypatch, settings):
    """Point the command's environment to the Redis and the storage of the tests."""
    monkeypatch.setenv("LONGCAT_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("LONGCAT_DATA_DIR", str(settings.data_dir))


@pytest.fixture
def left(worker):
    """Store files of an unknown job."""
    keys = [state_key("unknown", "s/s"), video_key("unknown", 1)]
    for key in keys:
        (worker.folder / "file").write_bytes(b"bytes")
        worker.storage.put(key, worker.folder / "file", "")
    yield sorted(keys)
    worker.storage.delete_prefix("jobs/unknown/")


@pytest.mark.usefixtures("_installed")
def test_orphans_are_listed_and_kept(order, worker, left, capsys):
    order()
    worker.succeed(worker.claim())
    assert main([]) == 1
    assert sorted(capsys.readouterr().out.split()) == left
    assert sorted(worker.storage.keys("jobs/unknown/")) == left


@pytest.mark.usefixtures("_installed")
def test_orphans_are_removed_on_request(order, worker, left):
    job = order()
    worker.succeed(worker.claim())
    assert main(["--remove"]) == 0
    assert main([]) == 0
    assert set(worker.storage.keys("jobs/")) == set(worker.storage.keys(f"jobs/{job['id']}/")) != set()


def test_invalid_settings_are_reported(monkeypatch, capsys):
    monkeypatch.setenv("LONGCAT_RETENTION_S", "-1")
    assert main([]) == 2
    assert capsys.readouterr().err == "error: LONGCAT_RETENTION_S is '-1': must be greater than 0\n"


@pytest.mark.usefixtures("_installed")
def test_unreachable_redis_is_reported(monkeypatch, capsys, left):
    monkeypatch.setenv("LONGCAT_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("LONGCAT_REDIS_PATIENCE_S", "0.1")
    assert main([]) == 1
    assert "Redis" in capsys.readouterr().err
