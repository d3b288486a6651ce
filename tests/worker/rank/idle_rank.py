"""A rank that idles for longer than a collective may take, and then works: `idle_rank RANK STORE WHERE`.

The leader comes late with an order. `WHERE` is the group in which the other waits for it: `agreement`, as
ranks of a worker do, or `model`, as none should. Both then sum something over the model's group.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from worker.rank.consensus import Consensus, StepOutcome

TIMEOUT_S = 3.0
IDLE_S = 3 * TIMEOUT_S


def main(rank: int, store: str, where: str) -> None:
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    ranks = Consensus(grace_s=1.0)
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT_S))
    dist.barrier()  # from here on both are there
    if ranks.is_leader:
        time.sleep(IDLE_S)
    if where == "model":
        _meet(group)
    order = ranks.share("order" if ranks.is_leader else None)
    total = torch.ones(1)
    dist.all_reduce(total, group=group)
    assert ranks.agree(StepOutcome()) == StepOutcome()
    sys.stdout.write(f"{order} {int(total)}")
    dist.destroy_process_group()


def _meet(group: dist.ProcessGroup | None) -> None:
    """After an error out of a collective nothing of the group can be trusted, its end included."""
    try:
        dist.barrier(group)
    except RuntimeError:
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
