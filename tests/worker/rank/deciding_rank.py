"""Reach consensus with another rank several times: `deciding_rank RANK STORE`.

At the end, rank 1 fails while rank 0 waits for it in a collective of the model.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch.distributed as dist

from jobs.record import JobError
from worker.rank.consensus import Consensus, GroupBroken, StepOutcome

DISK_FULL = StepOutcome(error=JobError(code="disk_full", message="full", retryable=True))
BUG = StepOutcome(
    error=JobError(code="generation_failed", message="bug", retryable=False), aftermath="unknown"
)


def main(rank: int, store: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=600)
    )
    consensus = Consensus(grace_s=10.0)
    leader, other = (consensus.is_leader, not consensus.is_leader)
    decide(consensus, "continue", StepOutcome())
    decide(consensus, "stop", StepOutcome(stop_request="drain" if leader else None))
    decide(consensus, "contained", DISK_FULL if other else StepOutcome())
    try:
        decide(consensus, "broken", BUG if other else StepOutcome())
    except GroupBroken as error:
        write(f"broken: {str(error).partition(':')[0]}")
    if other:
        write("fails while rank 0 waits elsewhere")
        consensus.decide(BUG)
    try:
        dist.barrier()
    except RuntimeError:
        write("noticed that rank 1 died")
    os._exit(0)  # no group can be used or destroyed by now


def decide(consensus: Consensus, name: str, outcome: StepOutcome) -> None:
    decision = consensus.decide(outcome)
    write(f"{name}: {decision.stop_request} {decision.error.code if decision.error else None}")


def write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
