"""Replace one release by another, process by process, while jobs are queued, running, saved and uploaded.

The last release comes from the history of this repository. Where that is missing, as in a shallow clone, the
tests are skipped. Run them with `make skew`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.skew.client import ENDED, Client, Job
from tests.skew.installation import Installation, open_installation
from tests.skew.orders import every_task, long_running
from tests.skew.release import WORKING_TREE, NoHistory, Release, check_out, recorded_release
from tests.waiting import wait_until

pytestmark = [pytest.mark.skew, pytest.mark.timeout(3600)]

PATIENCE_S = 900.0
WORKERS = ("a", "b")


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Return the last release's code."""
    version, commit = recorded_release()
    try:
        return check_out(commit, version, tmp_path_factory.mktemp("release"))
    except NoHistory as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def checkpoint(last_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that the last release wrote."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    command = [sys.executable, "-m", "model.tiny", str(folder)]
    subprocess.run(command, cwd=last_release.folder, check=True)
    return folder


@dataclass
class Fleet:
    """An installation under test, with the jobs that were submitted to it."""

    installation: Installation
    client: Client
    apis: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)

    def start(self, api: Release, worker: Release, num_apis: int = 1) -> None:
        """Start API processes and the workers, and wait until all are ready."""
        for _ in range(num_apis):
            self.apis.append(self.installation.start_api(api))
        self.client.urls = tuple(self.apis)
        for name in WORKERS:
            self.installation.start_worker(name, worker)
        wait_until(lambda: all(map(self.client.is_ready, self.apis)), PATIENCE_S, 0.2)

    def submit(self, body: dict[str, Any]) -> str:
        job_id = str(self.client.submit(body)["id"])
        self.jobs.append(job_id)
        return job_id

    def submit_every_task(self) -> list[str]:
        return [self.submit(body) for body in every_task().values()]

    def wait_until_saved(self, worker: str) -> None:
        """Wait until this worker denoises a job that has a checkpoint in its record."""
        wait_until(lambda: self._holds(worker, "running", saved=True), PATIENCE_S)

    def hold_up_an_upload(self, worker: str) -> None:
        """Take the storage away while this worker denoises, and wait until it has a video to upload."""
        storage = self.installation.s3
        while storage.health != "down":
            self.wait_until_saved(worker)
            storage.health = "down"
            if not self._holds(worker, "running", saved=True):  # that job has ended just now
                storage.health = "well"
        wait_until(lambda: self._holds(worker, "uploading"), PATIENCE_S)

    def restart_worker(self, name: str, release: Release) -> None:
        """Replace a worker as an orchestrator does: SIGTERM, then the other release on the same disk."""
        status = self.installation.processes[name].stop()
        assert status == 0, self.installation.log(name)[-5000:]
        self.installation.start_worker(name, release)

    def replace_api(self, url: str, release: Release) -> None:
        """Start a new process, then stop the old one, so that one of them always answers."""
        new = self.installation.start_api(release)
        wait_until(lambda: self.client.is_ready(new), PATIENCE_S, 0.2)
        self.apis = [new if other == url else other for other in self.apis]
        self.client.urls = tuple(self.apis)
        assert self.installation.processes[url].stop() in {0, -15}, self.installation.log(url)[-5000:]

    def wait_for_all(self) -> list[Job]:
        """Wait until every job has ended."""

        def ended() -> list[Job] | None:
            jobs = [self.client.job(job_id) for job_id in self.jobs]
            return jobs if all(job["status"] in ENDED for job in jobs) else None

        return wait_until(ended, PATIENCE_S, 0.2) or []

    def _holds(self, worker: str, status: str, *, saved: bool = False) -> bool:
        """Check that a worker holds a job in this status and, if `saved`, denoises it with a checkpoint."""
        for job_id in self.jobs:
            record: Any = self.installation.redis.hgetall(f"longcat:job:{job_id}")
            if (record[b"status"], record.get(b"group")) != (status.encode(), f"{worker}-0".encode()):
                continue
            phase = json.loads(record.get(b"progress", "{}")).get("phase")
            if not saved or (phase == "denoise" and b"checkpoint" in record):
                return True
        return False

    def check(self) -> None:
        """Check that every job succeeded in its first attempt, and that no process reported an error."""
        jobs = self.wait_for_all()
        failed = [job for job in jobs if (job["status"], job["attempt"]) != ("succeeded", 1)]
        assert not failed, failed
        for job in jobs:
            assert len(self.client.video(job["id"])) == job["result"]["size_bytes"]
        assert {job["id"] for job in self.client.jobs()} == set(self.jobs)
        assert self.client.server_errors == []
        for name, process in self.installation.processes.items():
            log = process.log.read_text()
            assert "the supervisor of group" not in log, (name, log[-5000:])  # the launcher: it ended
            assert "cannot be read" not in log, (name, log[-5000:])
            assert "Traceback" not in log, (name, log[log.index("Traceback") - 500 :][:5000])


@pytest.fixture
def fleet(last_release: Release, checkpoint: Path, tmp_path: Path) -> Iterator[Fleet]:
    """Return an installation without processes, and a client with an API key that the last release made."""
    own = shutil.copytree(checkpoint, tmp_path / "checkpoint")  # the ranks write their log into it
    with open_installation(tmp_path, own) as installation:
        key = installation.command(last_release, "service.keys", "create", "alice")
        with closing(Client(key)) as client:
            yield Fleet(installation, client)


@pytest.mark.parametrize("api_is_new", [False, True], ids=["new workers", "new api"])
def test_releases_work_together(fleet: Fleet, last_release: Release, api_is_new: bool):
    api, worker = (WORKING_TREE, last_release) if api_is_new else (last_release, WORKING_TREE)
    fleet.start(api, worker)
    with fleet.client.reading():
        fleet.submit_every_task()
        fleet.wait_for_all()
    fleet.check()


def test_jobs_survive_a_rolling_update_and_a_rollback(fleet: Fleet, last_release: Release):
    fleet.start(last_release, last_release, num_apis=2)
    with fleet.client.reading():
        fleet.submit_every_task()
        roll(fleet, WORKING_TREE)
        fleet.submit_every_task()
        roll(fleet, last_release)
        fleet.submit_every_task()
        fleet.wait_for_all()
    fleet.check()
    run, needed = fleet.installation.steps.work(set(fleet.jobs))
    assert run < 1.2 * needed, "jobs began again instead of resuming"


def roll(fleet: Fleet, release: Release) -> None:
    """Replace all processes: the workers first, one in the middle of a job, one during an upload."""
    for seed in (1, 2, 3, 4):
        fleet.submit(long_running(seed))
    fleet.wait_until_saved("a")
    fleet.restart_worker("a", release)

    fleet.hold_up_an_upload("b")
    fleet.restart_worker("b", release)
    fleet.installation.s3.health = "well"

    for url in list(fleet.apis):
        fleet.submit(long_running(seed=5))
        fleet.replace_api(url, release)
