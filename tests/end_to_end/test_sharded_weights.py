"""A group that shards its weights generates all kinds of videos, and stays ready after jobs that stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running_stack import RunningStack, run_stack
from tests.waiting import wait_until

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[RunningStack]:
    """Run a stack of two ranks that share weights."""
    folder = tmp_path_factory.mktemp("stack")
    with run_stack(folder, tiny_checkpoint, ranks=2, shard_weights="true", gpu_memory_gib=1) as stack:
        yield stack


def test_jobs_of_all_kinds_and_cancels_leave_the_weights_as_they_were(stack):
    group = {process for process in stack.descendants if "worker.rank.main" in process.cmdline()}
    assert len(group) == 3  # torchrun and two ranks
    before = stack.succeeded(stack.order(seed=1))
    stack.succeeded(stack.order(distilled=True))
    cancelled = stack.order(num_inference_steps=50, num_frames=33)
    wait_until(lambda: (stack.job(cancelled)["progress"] or {}).get("step", 0) > 1)
    assert stack.client.post(f"/jobs/{cancelled['id']}/cancel").status_code == 200
    assert stack.ended(cancelled)["status"] == "cancelled"
    stack.succeeded(stack.order(num_segments=2, num_condition_frames=5, refine=True))
    after = stack.succeeded(stack.order(seed=1))
    assert after["result"]["sha256"] == before["result"]["sha256"]
    assert group <= set(stack.descendants)


def test_capability_counts_sharded_weights(stack):
    (capability,) = stack.client.get("/capability").json()["pools"]
    setup = capability["memory"]["setup"]
    assert (setup["ranks"], setup["shard_weights"]) == (2, True)
