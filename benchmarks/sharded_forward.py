"""Compare forwards with sharded weights with those of ranks that hold all weights, for the same tokens.

`torchrun … -m benchmarks.sharded_forward DEVICE NUM_BLOCKS ROUNDS FILE NUM_RANKS` runs one rank on each GPU,
or all on a CPU. The ranks meet at FILE, which must not exist. The leader prints each measurement as a line of
JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import stages
from benchmarks.timing import seconds
from model.parallel.mesh import ContextParallel, FileRendezvous, join, leave
from model.parallel.sharded_blocks import ShardedBlocks
from model.transformer.loading import BLOCKS

TIMEOUT_S = 60.0


def main(device_type: str, num_blocks: str, rounds: str, path: str, num_ranks: str) -> None:
    """Measure on all ranks, and print what the leader has measured."""
    rendezvous = FileRendezvous(Path(path), int(num_ranks))
    parallel = join(device_type, None, TIMEOUT_S, rendezvous=rendezvous, shard_weights=True)
    full = stages.scale_of(device_type)
    scale = replace(full, dit=replace(full.dit, depth=int(num_blocks)))
    for sample in measure(scale, parallel, int(rounds)):
        if parallel.is_leader:
            print(json.dumps(sample), flush=True)
    leave()


def measure(scale: stages.Scale, parallel: ContextParallel, rounds: int) -> Iterator[tuple[str, float | str]]:
    """Yield the times of forwards of one text, and whether both give the same."""
    group = parallel.weights_group
    assert group is not None
    torch.manual_seed(0)  # all ranks have the same weights
    resident = stages.transformers(scale, parallel.device).plain
    sharded = stages.with_block_weights(
        resident, lambda blocks: ShardedBlocks(BLOCKS, blocks, group, parallel.device)
    )
    works = {
        "weights on each GPU": stages.forward(resident, scale, scale.base, 1, parallel=parallel),
        "sharded weights": stages.forward(sharded, scale, scale.base, 1, parallel=parallel),
    }
    expected, found = (work() for work in works.values())
    yield "the same as with all weights on each GPU", str(torch.equal(expected, found))
    for _ in range(rounds):
        for name, work in works.items():
            yield f"{name}: s", seconds(work, parallel.device)


if __name__ == "__main__":
    main(*sys.argv[1:])
