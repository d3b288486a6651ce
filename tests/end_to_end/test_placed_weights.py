"""A group whose ranks lack weights generates all kinds of videos, and stays ready after jobs that stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.running_stack import RunningStack, run_stack
from tests.waiting import wait_until

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module", params=["shard_weights", "stream_weights"])
def setting(request: pytest.FixtureRequest) -> str:
    """The setting that says where the weights of the blocks are."""
    return request.param


@pytest.fixture(scope="module")
def stack(
    setting: str, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[RunningStack]:
    """Run a stack of two ranks with this setting."""
    folder = tmp_path_factory.mktemp("stack")
    with run_stack(folder, tiny_checkpoint, ranks=2, gpu_memory_gib=1, **{setting: "true"}) as stack:
        yield stack


def test_jobs_of_all_kinds_and_cancels_leave_the_weights_as_they_were(stack):
    group = group_of(stack)
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


def test_capability_counts_the_weights_of_a_rank(stack, setting):
    (capability,) = stack.client.get("/capability").json()["pools"]
    setup = capability["memory"]["setup"]
    assert (setup["ranks"], setup[setting]) == (2, True)


def test_ranks_share_the_same_memory_with_those_that_are_started_after_them(stack):
    before = stack.succeeded(stack.order(seed=2, distilled=True))
    group = group_of(stack)
    (memory,) = {shared_memory_of(rank) for rank in ranks_of(group)}
    ranks_of(group)[0].kill()
    after = stack.succeeded(stack.order(seed=2, distilled=True))
    assert not group & group_of(stack)
    assert {shared_memory_of(rank) for rank in ranks_of(group_of(stack))} == {memory}
    assert after["result"]["sha256"] == before["result"]["sha256"]


def group_of(stack: RunningStack) -> set[psutil.Process]:
    """Torchrun and the ranks."""
    return {process for process in stack.descendants if "worker.rank.main" in process.cmdline()}


def ranks_of(group: set[psutil.Process]) -> list[psutil.Process]:
    """The processes of a group without torchrun, which is the parent of the others."""
    return [process for process in group if process.parent() in group]


def shared_memory_of(rank: psutil.Process) -> str:
    """The device and inode of the memory for weights that a rank has mapped."""
    maps = Path(f"/proc/{rank.pid}/maps").read_text().splitlines()
    (memory,) = {" ".join(line.split()[3:5]) for line in maps if "memfd:longcat-weights" in line}
    return memory
