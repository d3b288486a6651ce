"""Idle for longer than a collective may take, and then run a job: `idle_rank RANK STORE GROUP`.

The leader comes late with a job. `GROUP` is the process group in which the other rank waits for it:
`consensus`, as ranks of a worker do, or `model`, as none should. Both then sum a tensor over the model's
group.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from worker.rank.consensus import Consensus, StepOutcome

TIMEOUT_S = 10.0
IDLE_S = 1.5 * TIMEOUT_S


def main(rank: int, store: str, where: str) -> None:
    timeout = timedelta(seconds=600)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    consensus = Consensus(grace_s=1.0)
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT_S))
    dist.barrier()  # both have started
    if consensus.is_leader:
        time.sleep(IDLE_S)
    if where == "model":
        _wait(group)
    job = consensus.broadcast("job" if consensus.is_leader else None)
    total = torch.ones(1)
    dist.all_reduce(total, group=group)
    assert consensus.decide(StepOutcome()) == StepOutcome()
    sys.stdout.write(f"{job} {int(total)}")
    dist.destroy_process_group()


def _wait(group: dist.ProcessGroup | None) -> None:
    """Wait in a collective. After its timeout no group can be used, so exit without destroying them."""
    try:
        dist.barrier(group)
    except RuntimeError:
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
