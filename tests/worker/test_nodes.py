"""A group with ranks on two nodes generates the video of one node, also when a node is lost meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from stack.redis_server import RedisServer
from tests.decoded_video import SAME_VIDEO_DB, decode, psnr
from tests.servers import redis_program
from tests.waiting import wait_until
from tests.worker.running_nodes import NODE_TIMEOUT_S, RunningNodes, running_nodes
from tests.worker.running_worker import PATIENCE_S, RunningWorker, running_worker
from tests.worker.slow_link import SlowLink, can_make_slow_link, slow_link

LATENCY_S = 0.02


@pytest.fixture(scope="module")
def link() -> Iterator[SlowLink]:
    """A slow link between two network namespaces, which stand for two machines."""
    if not can_make_slow_link():
        pytest.skip("network namespaces and TUN devices need root and `ip`")
    with slow_link(LATENCY_S) as link:
        yield link


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
@pytest.mark.soak
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
@pytest.mark.soak
def test_cut_link_is_noticed_within_the_timeout_and_the_job_resumes(link, tmp_path):
    patient = {"stall_s": 600, "step_stall_s": 600}  # only the heartbeat can notice
    with running_nodes(tmp_path, link.namespaces, **patient) as nodes:
        nodes.first.wait_until_ready()
        job_id = nodes.first.submit("step_s=0.3", num_inference_steps=8)
        nodes.first.wait_for_step(job_id, 2)
        cut_until_all_ranks_end(link, nodes)
        assert_resumes(nodes.first, job_id)
    assert_both_noticed_the_cut(nodes)


def cut_until_all_ranks_end(link: SlowLink, nodes: RunningNodes) -> None:
    ranks = [*nodes.first.ranks, *nodes.second.ranks]
    assert len(ranks) == 4
    link.set_state("down")
    wait_until(lambda: not any(rank.is_running() for rank in ranks))
    link.set_state("up")


def assert_both_noticed_the_cut(nodes: RunningNodes) -> None:
    lost = f"node 1 has shown no sign of life for {NODE_TIMEOUT_S:g} s"
    assert lost in (nodes.first.folder / "worker.log").read_text()
    assert "node 0 does not answer" in (nodes.second.folder / "worker.log").read_text()


# Videos of the model

GUIDED, UNGUIDED = 4.0, 1.0
"""Scales of guidance."""

NUM_STEPS = 12
EXCHANGE_BYTES = 4096
"""More than the nodes send each other to show that they are alive."""


@dataclass(frozen=True)
class Layout:
    """How the nodes divide the work, which decides what they exchange over the link."""

    ring_degree: int
    guidance_scale: float


RING = Layout(2, UNGUIDED)
LAYOUTS = {"guidance": Layout(1, GUIDED), "ring": RING}
"""The nodes exchange predictions of guidance, or keys and values in attention."""


@pytest.fixture(scope="module")
def videos_of_one_rank(tiny_checkpoint, tmp_path_factory) -> dict[float, np.ndarray]:
    folder = tmp_path_factory.mktemp("one")
    with (
        RedisServer(folder / "redis", redis_program()) as redis,
        running_worker(folder, redis.url, ranks=1, **of_model(tiny_checkpoint)) as worker,
    ):
        return {scale: frames(worker, submit_video(worker, scale)) for scale in (GUIDED, UNGUIDED)}


@pytest.fixture(scope="module")
def layout(request) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def nodes_of_model(layout, link, tiny_checkpoint, tmp_path_factory) -> Iterator[RunningNodes]:
    """Two nodes that notice killed ranks by their closed connections, however slow the machine is."""
    folder = tmp_path_factory.mktemp("nodes")
    settings = {"node_timeout_s": 120, "ring_degree": layout.ring_degree, **of_model(tiny_checkpoint)}
    with running_nodes(folder, link.namespaces, **settings) as nodes:
        yield nodes


@pytest.mark.faults
@pytest.mark.soak
@pytest.mark.parametrize(
    ("layout", "phase", "in_exchange"),
    [
        pytest.param("guidance", "denoise", False, id="guidance-denoise"),
        pytest.param("guidance", "denoise", True, id="guidance-exchange"),
        pytest.param("guidance", "decode", True, id="guidance-decode"),
        pytest.param("ring", "denoise", False, id="ring-denoise"),
        pytest.param("ring", "denoise", True, id="ring-exchange"),
        pytest.param("ring", "decode", True, id="ring-decode"),
    ],
    indirect=["layout"],
)
def test_video_equals_that_of_one_rank_after_a_node_was_killed(
    phase, in_exchange, layout, link, nodes_of_model, videos_of_one_rank
):
    first = nodes_of_model.first
    first.wait_until_ready()
    job_id = submit_video(first, layout.guidance_scale)
    wait_until(lambda: has_begun(first, job_id, phase), PATIENCE_S)
    with link.held() if in_exchange else nullcontext():
        if in_exchange:
            wait_until(lambda: link.under_way_bytes > EXCHANGE_BYTES)
        nodes_of_model.kill_ranks_of_second()
    assert_same_video_in_second_attempt(first, job_id, layout, videos_of_one_rank)


@pytest.mark.faults
@pytest.mark.soak
def test_video_of_a_ring_equals_that_of_one_rank_after_its_link_was_cut(
    link, tiny_checkpoint, videos_of_one_rank, tmp_path
):
    settings = {"ring_degree": RING.ring_degree, **of_model(tiny_checkpoint)}
    with running_nodes(tmp_path, link.namespaces, **settings) as nodes:
        nodes.first.wait_until_ready()
        job_id = submit_video(nodes.first, RING.guidance_scale)
        wait_until(lambda: has_begun(nodes.first, job_id, "denoise"), PATIENCE_S)
        cut_until_all_ranks_end(link, nodes)
        assert_same_video_in_second_attempt(nodes.first, job_id, RING, videos_of_one_rank)
    assert_both_noticed_the_cut(nodes)


def assert_same_video_in_second_attempt(
    worker: RunningWorker, job_id: str, layout: Layout, videos: dict[float, np.ndarray]
) -> None:
    """Check that the video is that of one rank but for rounding, and far from that of the other scale."""
    video = frames(worker, job_id)
    assert worker.job(job_id).attempt == 2
    other = GUIDED if layout.guidance_scale == UNGUIDED else UNGUIDED
    assert psnr(video, videos[layout.guidance_scale]) > SAME_VIDEO_DB
    assert psnr(video, videos[other]) < SAME_VIDEO_DB - 10


def of_model(checkpoint: Path) -> dict[str, object]:
    """Return settings of a worker with the model. Only a lost node ends an attempt, not a slow machine."""
    patient = {"lease_s": 120, "stall_s": 600, "step_stall_s": 600}
    return {"rank_module": "worker.rank.main", "checkpoint": checkpoint, **patient}


def submit_video(worker: RunningWorker, guidance_scale: float) -> str:
    return worker.submit(
        "a red ball", num_frames=17, num_inference_steps=NUM_STEPS, guidance_scale=guidance_scale
    )


def has_begun(worker: RunningWorker, job_id: str, phase: str) -> bool:
    """Return whether a job is in a phase, and in the third of its steps, if the phase has steps."""
    progress = worker.job(job_id).progress
    return progress is not None and progress.phase == phase and (progress.step >= 2 or phase == "decode")


def frames(worker: RunningWorker, job_id: str) -> np.ndarray:
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert job.error is None
    assert job.result is not None
    return decode(b"".join(worker.storage.read(job.result.video_key))).frames
