"""Compare forwards on several GPUs, for the same tokens: exchanges while attention computes, sharded weights.

`torchrun … -m benchmarks.several_gpus DEVICE NUM_BLOCKS ROUNDS FILE NUM_RANKS` runs one rank on each GPU,
or all on a CPU. The ranks meet at FILE, which must not exist. The leader prints each measurement as a line of
JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import stages
from benchmarks.timing import GIGA, seconds
from model.parallel.links import sent_bytes_per_s
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
    """Yield the rate of the links, the times of forwards of one text, and whether they give the same."""
    group = parallel.weights_group
    assert group is not None
    yield "GB/s that a rank sends to the others", sent_bytes_per_s(parallel.device, group) / GIGA
    torch.manual_seed(0)  # all ranks have the same weights
    resident = stages.transformers(scale, parallel.device).plain
    forward = partial(stages.forward, resident, scale, num_texts=1)
    at_once, in_slices = (replace(parallel, has_slow_links=slow) for slow in (False, True))
    for name, window, sparse in (("480p", scale.base, False), ("refinement", scale.refined, True)):
        works = {
            f"{name}, attention between exchanges": forward(window, sparse=sparse, parallel=at_once),
            f"{name}, attention while slices are exchanged": forward(
                window, sparse=sparse, parallel=in_slices
            ),
        }
        yield from _compared(f"{name}, the same in slices", works, parallel.device, rounds)
    sharded = stages.with_block_weights(
        resident, lambda blocks: ShardedBlocks(BLOCKS, blocks, group, parallel.device)
    )
    works = {
        "weights on each GPU": forward(scale.base, parallel=parallel),
        "sharded weights": stages.forward(sharded, scale, scale.base, 1, parallel=parallel),
    }
    yield from _compared("the same as with all weights on each GPU", works, parallel.device, rounds)


def _compared(
    equality: str, works: Mapping[str, Callable[[], Tensor]], device: torch.device, rounds: int
) -> Iterator[tuple[str, float | str]]:
    """Yield whether two works give the same, and their times in turn."""
    one, other = (work() for work in works.values())
    yield equality, str(torch.equal(one, other))
    del one, other
    for _ in range(rounds):
        for name, work in works.items():
            yield f"{name}: s", seconds(work, device)


if __name__ == "__main__":
    main(*sys.argv[1:])
