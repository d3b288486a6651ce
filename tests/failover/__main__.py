"""Check that a failover loses no acknowledged job: `python -m tests.failover [--kills 20]`.

Three Redis servers, three Sentinels and one API process run on this machine. Clients request videos without a
pause while the primary is killed. Afterwards every job that was acknowledged with 202 must be there. The exit
status is 1 if one is missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from jobs.connect import connect
from tests.pools import set_only_pool
from tests.redis_fleet import Fleet, redis_fleet
from tests.servers import free_port
from tests.service.conftest import CAPABILITY
from tests.waiting import wait_until

NUM_CLIENTS = 4
NUM_JOBS_BETWEEN = 50
PAUSE_S = 0.05
REQUEST_TIMEOUT_S = 20.0
START_TIMEOUT_S = 60.0


@dataclass
class Clients:
    """Clients that request videos until `stop` is set."""

    url: str
    acknowledged: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=REQUEST_TIMEOUT_S) as http:
            while not self.stop.is_set():
                self._request(http)

    def wait_for_more(self) -> float:
        """Wait for further jobs. Return the time until the first of them."""
        began, before = time.monotonic(), len(self.acknowledged)
        wait_until(lambda: len(self.acknowledged) > before, timeout_s=120)
        first_s = time.monotonic() - began
        wait_until(lambda: len(self.acknowledged) >= before + NUM_JOBS_BETWEEN, timeout_s=120)
        return first_s

    def _request(self, http: httpx.Client) -> None:
        began = time.monotonic()
        answer = http.post("/generate", json={"prompt": "a red ball"})
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.statuses[answer.status_code] += 1
        if answer.status_code == 202:
            self.acknowledged.append(answer.json()["id"])
        time.sleep(PAUSE_S)


def main() -> int:
    """Run the campaign and print what happened. Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.failover", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--wait-replicas", type=int, default=1, help="0: without the durable mode")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, redis_fleet(Path(name) / "redis") as fleet:
        with connect(fleet.url) as redis:
            set_only_pool(redis, CAPABILITY)
        with running_service(fleet, Path(name), options.wait_replicas) as url:
            clients = Clients(url)
            kill_primaries(fleet, clients, options.kills)
            with httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S) as http:
                lost = [job_id for job_id in clients.acknowledged if not exists(http, job_id)]
    print(
        f"{options.kills} kills, {len(clients.acknowledged)} jobs acknowledged, {len(lost)} lost; "
        f"responses {dict(clients.statuses)}, the slowest after {clients.slowest_s:.1f} s"
    )
    return 1 if lost or set(clients.statuses) - {202, 503} else 0


def kill_primaries(fleet: Fleet, clients: Clients, num_kills: int) -> None:
    """Kill one primary after the other while the clients are at work."""
    threads = [threading.Thread(target=clients.run) for _ in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, num_kills + 1):
            clients.wait_for_more()
            killed = fleet.kill_primary()
            print(
                f"kill {number}: jobs are accepted again {clients.wait_for_more():.1f} s after the election"
            )
            fleet.recover(killed)
    finally:
        clients.stop.set()
        for thread in threads:
            thread.join()


def exists(http: httpx.Client, job_id: str) -> bool:
    """Return whether the API knows a job."""
    answer = http.get(f"/jobs/{job_id}/webhooks")  # the job itself has a place in the queue, which costs time
    assert answer.status_code in {200, 404}, answer.text
    return answer.status_code == 200


@contextmanager
def running_service(fleet: Fleet, folder: Path, wait_replicas: int) -> Iterator[str]:
    """Run one API process that finds Redis through the Sentinels. Yield its URL."""
    port = free_port()
    settings = {
        "REDIS_URL": fleet.url,
        "REDIS_WAIT_REPLICAS": wait_replicas,
        "PORT": port,
        "DATA_DIR": folder / "data",
        "OWNER_REQUESTS_PER_S": "none",
        "OWNER_QUEUED_JOBS": "none",
        "TOTAL_QUEUED_JOBS": "none",
    }
    given = {f"LONGCAT_{name}": str(value) for name, value in settings.items()}
    url = f"http://127.0.0.1:{port}"
    with (folder / "service.log").open("wb") as log:
        service = subprocess.Popen(
            [sys.executable, "-m", "service"], env={**os.environ, **given}, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: is_live(url), timeout_s=START_TIMEOUT_S)
        yield url
    finally:
        service.terminate()
        service.wait()


def is_live(url: str) -> bool:
    """Return whether the API answers."""
    try:
        return httpx.get(f"{url}/livez").is_success
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.exit(main())
