"""What is done with the installed chart, and what must hold."""

from __future__ import annotations

import io
import logging
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from longcat_video_client import Client
from longcat_video_client.models import Job
from tests.cluster.release import TIMEOUT_S, WORKERS, Release, Values
from tests.decoded_video import decode
from tests.waiting import wait_until

logger = logging.getLogger(__name__)

PROMPT = "A big red ball bouncing on a gray background with stripes"
LONG_STEPS = 100
"""So many steps that a job is still at work when something is done to its pod."""
POLL_S = 0.5


@dataclass
class Trials:
    """Trials of a release, in the order of the methods.

    Attributes:
        release: the installed chart.
        jobs: the ids of all jobs that the API has accepted.
        report: figures to print.
    """

    release: Release
    jobs: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def generate(self) -> None:
        """Make a video."""
        logger.info("making a video")
        with self.release.client() as client:
            self.expect_video(client, self.submit(client))

    def update(self) -> None:
        """Update API and workers while a job is at work and the API is asked all the time."""
        logger.info("updating with a job at work")
        with self.release.client() as client, asked_all_the_time(self.release.url()) as failures:
            job = self.at_work(client)
            self.release.upgrade(mark_pods, wait=False)
            self.expect_in_queue(client, job)
            self.release.wait_until_ready()
            self.expect_untouched(client, job)
        assert not failures, f"the API did not answer during an update: {failures[:3]}"

    def drain(self) -> None:
        """Drain the workers off the node while a job is at work."""
        logger.info("draining the node with a job at work")
        with self.release.client() as client:
            job = self.at_work(client)
            started_at = time.monotonic()
            self.release.node.kubectl(
                *("drain", "node", f"--pod-selector={WORKERS}", "--delete-emptydir-data", "--timeout=300s")
            )
            self.report["drain_s"] = round(time.monotonic() - started_at, 1)
            self.expect_in_queue(client, job)
            self.release.node.kubectl("uncordon", "node")
            self.release.wait_until_ready()
            self.expect_untouched(client, job)

    def scale(self) -> None:
        """Go from 0 to 1 to 3 to 0 workers; jobs are accepted at 0, and one at work survives."""
        logger.info("scaling")
        with self.release.client() as client:
            self.release.upgrade(lambda values: set_workers(values, 0))
            waiting = self.submit(client)
            assert client.jobs.get(waiting.id).status == "queued"
            self.release.upgrade(lambda values: set_workers(values, 1))
            self.expect_video(client, waiting)
            self.release.upgrade(lambda values: set_workers(values, 3))
            together = [self.submit(client) for _ in range(3)]
            for job in together:
                self.expect_video(client, job)
            job = self.at_work(client)
            self.release.upgrade(lambda values: set_workers(values, 0))
            self.expect_in_queue(client, job)
            self.release.upgrade(lambda values: set_workers(values, 2))
            self.expect_untouched(client, job)

    def delete_pods(self, minutes: float, seed: int) -> None:
        """Delete pods at random while jobs are submitted, every third one without time to end."""
        logger.info("deleting pods for %g minutes, seed %d", minutes, seed)
        choice = random.Random(seed)
        stop = threading.Event()
        deleted: dict[str, int] = {}
        with self.release.client() as client, ThreadPoolExecutor() as threads:
            load = [threads.submit(self.keep_submitting, client, stop) for _ in range(2)]
            try:
                ends_at = time.monotonic() + 60 * minutes
                while time.monotonic() < ends_at and not any(each.done() for each in load):
                    pod = choice.choice(self.release.pods())
                    force = choice.random() < 1 / 3
                    name = pod["metadata"]["name"]
                    part = pod["metadata"]["labels"]["app.kubernetes.io/component"]
                    logger.info("deleting %s%s", name, " by force" if force else "")
                    how = ("--grace-period=0", "--force") if force else ()
                    self.release.node.kubectl(
                        *("delete", "pod", name, "--wait=false", "--ignore-not-found"), *how
                    )
                    deleted[part] = deleted.get(part, 0) + 1
                    stop.wait(choice.uniform(5, 20))
            finally:
                stop.set()
            for each in load:
                each.result()
            self.release.wait_until_ready()
            self.report["deleted_pods"] = deleted

    def expect_every_video(self) -> None:
        """Check that every accepted job has its video, and that there is no other job."""
        with self.release.client() as client:
            for job_id in self.jobs:
                self.expect_video(client, client.jobs.get(job_id))
            listed = sorted(job.id for job in client.jobs.list())
        assert listed == sorted(self.jobs), "jobs that nobody submitted, or that are gone"
        videos = list((self.release.node.folder / "volumes" / "storage").rglob("*.mp4"))
        assert len(videos) == len(self.jobs), f"{len(videos)} videos of {len(self.jobs)} jobs"
        self.report["jobs"] = len(self.jobs)

    def keep_submitting(self, client: Client, stop: threading.Event) -> None:
        """Submit a job and wait for its end, again and again."""
        while not stop.is_set():
            client.jobs.wait(self.submit(client).id, timeout_s=TIMEOUT_S)

    def submit(self, client: Client, **options: Any) -> Job:
        """Submit a job and remember it."""
        job = client.submit(PROMPT, seed=len(self.jobs), **options)
        self.jobs.append(job.id)
        return job

    def at_work(self, client: Client) -> Job:
        """Submit a long job and return it when it has made a quarter of its steps."""
        job = self.submit(client, num_inference_steps=LONG_STEPS)

        def now() -> Job | None:
            found = client.jobs.get(job.id)
            assert not found.has_ended, f"the job was too short: {found.status}"
            return found if found.progress and (found.progress.step or 0) >= LONG_STEPS / 4 else None

        return wait_until(now, TIMEOUT_S, every_s=POLL_S)

    def expect_video(self, client: Client, job: Job) -> Job:
        """Wait for the end of a job, check its video, and return the job."""
        ended = client.jobs.wait(job.id, timeout_s=TIMEOUT_S)
        result = ended.result_or_raise()
        content = io.BytesIO()
        client.jobs.download(ended, content)
        video = decode(content.getvalue())
        assert (*video.size, len(video.frames)) == (result.width, result.height, result.num_frames)
        return ended

    def expect_in_queue(self, client: Client, job: Job) -> None:
        """Wait until a job that was at work is back in the queue, where it stays until a pod has loaded."""

        def is_back() -> bool:
            now = client.jobs.get(job.id)
            assert not now.has_ended, f"the job was too short: {now.status}"
            return now.status == "queued"

        wait_until(is_back, TIMEOUT_S, every_s=POLL_S)

    def expect_untouched(self, client: Client, job: Job) -> None:
        """Wait for the end of a job whose pod was asked to end, and check that it went on where it was."""
        ended = self.expect_video(client, job)
        assert ended.attempt == 1, f"attempt {ended.attempt} after an orderly end of its pod"
        assert ended.gpu_s
        lost = (ended.lost_gpu_s or 0.0) / ended.gpu_s
        assert lost < 0.1, f"{lost:.0%} of the GPU time were lost"
        self.report.setdefault("lost_share", []).append(round(lost, 4))


def mark_pods(values: Values) -> None:
    """Change the template of all pods, so that each one is replaced."""
    mark = {"podAnnotations": {"revision": "2"}}
    values["api"] |= mark
    values["poolDefaults"] |= mark


def set_workers(values: Values, number: int) -> None:
    """Change the number of workers."""
    values["poolDefaults"]["replicas"] = number


@contextmanager
def asked_all_the_time(url: str) -> Iterator[list[str]]:
    """Ask the API for its health on new connections. Yield the list of requests that failed."""
    stop = threading.Event()
    failures: list[str] = []

    def ask() -> None:
        while not stop.wait(0.2):
            try:
                status = httpx.get(f"{url}/livez", timeout=30.0).status_code
            except httpx.HTTPError as error:
                failures.append(repr(error))
            else:
                if status != httpx.codes.OK:
                    failures.append(str(status))

    thread = threading.Thread(target=ask, name="ask the API")
    thread.start()
    try:
        yield failures
    finally:
        stop.set()
        thread.join()
