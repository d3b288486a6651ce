"""The whole stack as a program, `python -m stack serve`, for the tests that submit jobs to it over HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.servers import free_port
from tests.waiting import wait_until

Job = dict[str, Any]

ENDED = {"succeeded", "failed", "cancelled"}
START_TIMEOUT_S = 900.0
JOB_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class RunningStack:
    """A stack that is ready, and a client of it."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path

    @property
    def url(self) -> str:
        """Where it answers."""
        return str(self.client.base_url).rstrip("/")

    @property
    def descendants(self) -> list[psutil.Process]:
        """Every process that it has started, directly or not."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def order(self, **request: Any) -> Job:
        """Submit a job with a JSON body, and return it."""
        answer = self.client.post("/generate", json={"prompt": "a cat", **request})
        assert answer.status_code == 202, answer.text
        job: Job = answer.json()
        return job

    def job(self, job: Job) -> Job:
        """The same job as it is now."""
        answer = self.client.get(f"/jobs/{job['id']}")
        assert answer.status_code == 200, answer.text
        now: Job = answer.json()
        return now

    def ended(self, job: Job) -> Job:
        """The job when it has ended, however."""
        wait_until(lambda: self.job(job)["status"] in ENDED, JOB_TIMEOUT_S)
        return self.job(job)

    def succeeded(self, job: Job) -> Job:
        """The job when it has succeeded, as it must."""
        ended = self.ended(job)
        assert ended["status"] == "succeeded", (ended, self.log.read_text()[-10_000:])
        return ended

    def video(self, job: Job) -> bytes:
        """Return the bytes of the job's video."""
        answer = self.client.get(f"/jobs/{job['id']}/video", follow_redirects=True)
        assert answer.status_code == 200, answer.text
        return answer.content


@contextmanager
def run_stack(folder: Path, checkpoint: Path, **settings: str | int | Path) -> Iterator[RunningStack]:
    """Run a stack that keeps its data in `folder`; settings as in the settings classes, small letters."""
    port = free_port()
    all_settings = {
        "data_dir": folder / "data",
        "checkpoint": checkpoint,
        "port": port,
        "device": "cpu",
        "redis_patience_s": 60,  # on a busy machine, Redis may take seconds
        **settings,
    }
    environment = {f"LONGCAT_{name.upper()}": str(value) for name, value in all_settings.items()}
    log = folder / "stack.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "stack", "serve"],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: b"ready at" in log.read_bytes() or process.poll() is not None, START_TIMEOUT_S)
        assert process.poll() is None, log.read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
            yield RunningStack(process, client, log)
        process.terminate()
        assert process.wait() in {0, -signal.SIGKILL}, log.read_text()
    finally:
        process.kill()
        process.wait()
