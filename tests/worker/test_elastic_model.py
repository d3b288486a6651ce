"""Videos of the real model are the same when jobs share and exchange the ranks of a world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from stack.redis_server import RedisServer
from tests.decoded_video import SAME_VIDEO_DB, psnr
from tests.servers import redis_program
from tests.worker.running_worker import RunningWorker, running_worker

pytestmark = pytest.mark.soak

ORDERS: dict[str, dict[str, object]] = {
    "a cat": {"num_inference_steps": 40, "guidance_scale": 4.0},
    "a dog": {"num_inference_steps": 12, "num_segments": 3, "num_condition_frames": 5},
    "a bird": {"num_inference_steps": 16},
}


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with RedisServer(tmp_path / "redis", redis_program()) as redis:
        yield redis.url


def frames(worker: RunningWorker, prompt: str, job_id: str) -> np.ndarray:
    job = worker.wait_for(job_id, "succeeded", "failed")
    assert (job.error, job.attempt) == (None, 1), prompt
    assert job.result
    with av.open(str(worker.folder / "data" / "storage" / job.result.video_key)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def make(worker: RunningWorker, *, together: bool) -> dict[str, np.ndarray]:
    """Make all videos, at the same time or one after the other."""
    jobs: dict[str, str] = {}
    for prompt, changes in ORDERS.items():
        jobs[prompt] = worker.submit(prompt, **changes)  # type: ignore[arg-type]
        if not together:
            worker.wait_for(jobs[prompt], "succeeded", "failed")
    return {prompt: frames(worker, prompt, job_id) for prompt, job_id in jobs.items()}


def test_videos_are_those_of_a_single_rank(tmp_path, redis_url, tiny_checkpoint):
    settings = {
        "rank_module": "worker.rank.main",
        "checkpoint": tiny_checkpoint,
        "stall_s": 300,
        "step_stall_s": 300,
    }
    videos = {}
    for name, ranks in (("alone", {"ranks": 1}), ("elastic", {"ranks": 4, "context_parallel": "auto"})):
        (tmp_path / name).mkdir()
        with running_worker(tmp_path / name, redis_url, **settings, **ranks) as worker:
            worker.wait_until_ready()
            videos[name] = make(worker, together=name == "elastic")
            log = (worker.folder / "worker.log").read_text()
    assert "moves from ranks" in log
    for prompt in ORDERS:
        assert psnr(videos["alone"][prompt], videos["elastic"][prompt]) > SAME_VIDEO_DB, prompt
    cat, dog = (videos["alone"][prompt] for prompt in ("a cat", "a dog"))
    assert psnr(cat, dog[: len(cat)]) < SAME_VIDEO_DB - 10
