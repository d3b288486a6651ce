"""A group with ranks on two nodes generates the video of one node, also when a node is lost meanwhile."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from stack.redis_server import RedisServer
from tests.attacks.namespaces import Namespace, can_make_namespaces, joined_namespaces
from tests.decoded_video import SAME_VIDEO_DB, decode, psnr
from tests.servers import redis_program
from tests.waiting import wait_until
from tests.worker.running_nodes import LOOPBACK, RunningNodes, running_nodes
from tests.worker.running_worker import PATIENCE_S, RunningWorker, running_worker

LATENCY = "5ms"


@pytest.fixture(scope="module")
def two_machines() -> Iterator[tuple[Namespace, Namespace]]:
    """Return two network namespaces that are joined by a cable, with latency if the kernel can delay."""
    if not can_make_namespaces():
        pytest.skip("network namespaces need root and `ip`")
    with joined_namespaces() as pair:
        if shutil.which("tc"):
            for namespace in pair:
                delay = ["tc", "qdisc", "add", "dev", namespace.interface, "root", "netem", "delay", LATENCY]
                subprocess.run(namespace.command(*delay), check=False, capture_output=True)
        yield pair


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNodes]:
    with running_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


def assert_resumes(worker: RunningWorker, job_id: str) -> None:
    """Check that the job succeeds in its second attempt and repeats at most two steps."""
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert (job.error, job.attempt) == (None, 2)
    steps = worker.steps(job_id)
    assert sorted(set(steps)) == [(0, step) for step in range(8)]
    assert len(steps) <= 8 + 2  # one was running, one was being saved


@pytest.mark.integration
def test_group_counts_the_ranks_of_all_nodes(nodes):
    nodes.first.wait_until_ready()
    assert nodes.first.status().ranks == 4
    assert len(nodes.first.ranks) == len(nodes.second.ranks) == 2


@pytest.mark.integration
def test_job_resumes_after_the_ranks_of_another_node_were_killed(nodes):
    nodes.first.wait_until_ready()
    job_id = nodes.first.submit("step_s=0.3", num_inference_steps=8)
    nodes.first.wait_for_step(job_id, 2)
    nodes.kill_ranks_of_second()
    assert_resumes(nodes.first, job_id)


@pytest.mark.faults
def test_job_resumes_after_another_node_was_suspended(nodes):
    nodes.first.wait_until_ready()
    job_id = nodes.first.submit("step_s=0.3", num_inference_steps=8)
    nodes.first.wait_for_step(job_id, 2)
    suspended = nodes.second.look()
    for process in suspended:
        process.suspend()
    wait_until(lambda: nodes.first.job(job_id).status == "queued")
    for process in suspended:
        process.resume()
    assert_resumes(nodes.first, job_id)


@pytest.mark.faults
def test_job_resumes_after_the_first_node_was_killed(nodes):
    nodes.first.wait_until_ready()
    job_id = nodes.first.submit("step_s=0.3", num_inference_steps=8)
    nodes.first.wait_for_step(job_id, 2)
    followers = nodes.second.ranks
    for process in [nodes.first.supervisor, psutil.Process(nodes.first.parent.pid)]:
        process.kill()
    nodes.first.parent.wait()
    wait_until(lambda: not any(rank.is_running() for rank in followers))
    nodes.first.start()
    assert_resumes(nodes.first, job_id)


@pytest.mark.faults
def test_cut_link_is_noticed_within_the_timeout_and_the_job_resumes(two_machines, tmp_path):
    patient = {"stall_s": 600, "step_stall_s": 600}  # only the heartbeat can notice
    with running_nodes(tmp_path, two_machines, **patient) as nodes:
        nodes.first.wait_until_ready()
        job_id = nodes.first.submit("step_s=0.3", num_inference_steps=8)
        nodes.first.wait_for_step(job_id, 2)
        ranks = [*nodes.first.ranks, *nodes.second.ranks]
        set_link(two_machines[1], "down")
        wait_until(lambda: not any(rank.is_running() for rank in ranks))
        set_link(two_machines[1], "up")
        assert_resumes(nodes.first, job_id)
    assert "node 1 has shown no sign of life for 5 s" in (nodes.first.folder / "worker.log").read_text()
    assert "node 0 does not answer" in (nodes.second.folder / "worker.log").read_text()


def set_link(namespace: Namespace, state: str) -> None:
    subprocess.run(namespace.command("ip", "link", "set", namespace.interface, state), check=True)


GUIDED, UNGUIDED = 4.0, 1.0
"""Scales of guidance. With guidance, each node makes one of the predictions, and no ring leaves it."""


@pytest.fixture(scope="module")
def videos_of_one_rank(tiny_checkpoint, tmp_path_factory) -> dict[float, np.ndarray]:
    folder = tmp_path_factory.mktemp("one")
    with (
        RedisServer(folder / "redis", redis_program()) as redis,
        running_worker(folder, redis.url, ranks=1, **of_model(tiny_checkpoint)) as worker,
    ):
        return {scale: frames(worker, submit_video(worker, scale)) for scale in (GUIDED, UNGUIDED)}


@pytest.mark.integration
@pytest.mark.parametrize("where", ["loopback", "two machines"])
def test_video_equals_that_of_one_rank_after_a_node_was_killed_while_denoising(
    where, videos_of_one_rank, tiny_checkpoint, tmp_path, request
):
    namespaces = LOOPBACK if where == "loopback" else request.getfixturevalue("two_machines")
    with running_nodes(tmp_path, namespaces, **of_model(tiny_checkpoint)) as nodes:
        job_id = submit_video(nodes.first, GUIDED)
        wait_until(lambda: is_denoising(nodes.first, job_id), PATIENCE_S)
        nodes.kill_ranks_of_second()
        video = frames(nodes.first, job_id)
        assert nodes.first.job(job_id).attempt == 2
    assert_same_video(videos_of_one_rank, GUIDED, video)


@pytest.mark.integration
def test_video_of_a_ring_between_machines_equals_that_of_one_rank_after_a_loss(
    videos_of_one_rank, two_machines, tiny_checkpoint, tmp_path
):
    """Nearly all the time is spent in the exchanges over the link, so that is where the loss is noticed."""
    with running_nodes(tmp_path, two_machines, ring_degree=2, **of_model(tiny_checkpoint)) as nodes:
        job_id = submit_video(nodes.first, UNGUIDED)
        wait_until(lambda: is_denoising(nodes.first, job_id), PATIENCE_S)
        nodes.kill_ranks_of_second()
        video = frames(nodes.first, job_id)
        assert nodes.first.job(job_id).attempt == 2
    assert_same_video(videos_of_one_rank, UNGUIDED, video)


def assert_same_video(videos: dict[float, np.ndarray], scale: float, video: np.ndarray) -> None:
    """Check that `video` is that of one rank but for rounding, and far from that of the other scale."""
    other = GUIDED if scale == UNGUIDED else UNGUIDED
    assert psnr(video, videos[scale]) > SAME_VIDEO_DB
    assert psnr(video, videos[other]) < SAME_VIDEO_DB - 10


def of_model(checkpoint: Path) -> dict[str, object]:
    return {"rank_module": "worker.rank.main", "checkpoint": checkpoint, "stall_s": 120, "step_stall_s": 120}


def submit_video(worker: RunningWorker, guidance_scale: float) -> str:
    return worker.submit("a red ball", num_frames=17, num_inference_steps=100, guidance_scale=guidance_scale)


def is_denoising(worker: RunningWorker, job_id: str) -> bool:
    progress = worker.job(job_id).progress
    return progress is not None and progress.phase == "denoise" and progress.step >= 5


def frames(worker: RunningWorker, job_id: str) -> np.ndarray:
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert job.error is None
    assert job.result is not None
    return decode(b"".join(worker.storage.read(job.result.video_key))).frames
