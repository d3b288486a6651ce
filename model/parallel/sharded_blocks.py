"""Shard the weights of blocks over the ranks of a group, and gather each block under the one before.

Of the flat buffer of each block, each rank holds an equal part, its *shard*.

The gathers use a process group of their own. Otherwise NCCL would finish the gather of the next block before
it starts the exchanges around attention of the current one.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from model.transformer.flat_blocks import Fetch, FlatBlocks, SomeBlock, Span, aligned


class ShardedBlocks(FlatBlocks[SomeBlock]):
    """Blocks of whose weights this rank holds a shard."""

    def __init__(
        self, path: str, blocks: Iterable[SomeBlock], group: dist.ProcessGroup, device: torch.device
    ) -> None:
        """Allocate the shards and the slots on the device.

        Args:
            path: path of the blocks in the transformer whose modules and tensors are named.
            blocks: blocks on any device, usually meta; their weights are lost.
            group: the ranks that hold the shards.
            device: device of this rank.
        """
        self._group, self._device = group, device
        self._num_ranks, self._rank = dist.get_world_size(group), dist.get_rank(group)
        super().__init__(path, blocks, device)

    def _allocate(self, block_bytes: Sequence[int]) -> int:
        self._shards = [
            torch.empty(aligned(-(-size // self._num_ranks)), dtype=torch.uint8, device=self._device)
            for size in block_bytes
        ]
        return self._num_ranks * max(shard.nbytes for shard in self._shards)

    def _fetch(self, number: int, slot: Tensor) -> Fetch:
        # On CUDA the gather waits for what the current stream was given so far, which are all kernels that
        # read the slot.
        shard = self._shards[number]
        return start_gather(slot[: self._num_ranks * shard.nbytes], shard, self._group)

    def _write(self, span: Span, content: Tensor) -> None:
        if overlap := self._overlap(span):
            first, last = overlap
            shard = self._shards[span.block]
            begin = self._rank * shard.nbytes
            shard[first - begin : last - begin].copy_(content[first - span.start : last - span.start])

    def _has_part_of(self, span: Span) -> bool:
        return self._overlap(span) is not None

    def _overlap(self, span: Span) -> tuple[int, int] | None:
        """Return where the common bytes of a span and this rank's shard begin and end; None without any."""
        shard_bytes = self._shards[span.block].nbytes
        first = max(span.start, self._rank * shard_bytes)
        last = min(span.stop, (self._rank + 1) * shard_bytes)
        return (first, last) if first < last else None


def start_gather(whole: Tensor, shard: Tensor, group: dist.ProcessGroup) -> dist.Work:
    """Begin to gather the shards of all ranks, in their order, into one tensor."""
    renamed = getattr(dist, "all_gather_single", None)  # since PyTorch 2.13, which warns of the old name
    gather = renamed or dist.all_gather_into_tensor
    return cast(dist.Work, gather(whole, shard, group=group, async_op=True))
