"""Shard the weights of blocks over the ranks of a group, and gather each block under the one before.

All weights of a block lie in one flat buffer, of which each rank holds an equal part, its *shard*. The ranks
gather the whole buffer into one of two *slots*; the parameters of the block are views of this slot. Weights
are copied byte by byte, so results are exactly those of ranks that hold all weights.

The gathers use a process group of their own. Otherwise NCCL would finish the gather of the next block before
it starts the exchanges around attention of the present one.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

SomeBlock = TypeVar("SomeBlock", bound=nn.Module)

NUM_SLOTS = 2  # one for the block that computes, one for the block that is gathered
ALIGNMENT_BYTES = 256
"""Alignment of each tensor. An allocation of its own has the same on CUDA, so the same kernels are chosen."""


class Span(NamedTuple):
    """The place of a tensor: its block, and its first byte and the byte after its last in the flat buffer."""

    block: int
    start: int
    stop: int


class ShardedBlocks(Generic[SomeBlock]):
    """Blocks of whose weights this rank holds a shard. See `model.transformer.block_weights.BlockWeights`."""

    def __init__(
        self, path: str, blocks: Iterable[SomeBlock], group: dist.ProcessGroup, device: torch.device
    ) -> None:
        """Allocate the shards and the slots on the device, and make all parameters views of the slots.

        Args:
            path: path of the blocks in the transformer whose modules and tensors are named.
            blocks: blocks on any device, usually meta; their weights are lost.
            group: the ranks that hold the shards.
            device: device of this rank.
        """
        self._path, self._blocks, self._group = path, list(blocks), group
        self._num_ranks, self._rank = dist.get_world_size(group), dist.get_rank(group)
        self._spans: dict[str, Span] = {}
        self._shards = [
            torch.empty(self._lay_out(number), dtype=torch.uint8, device=device)
            for number in range(len(self._blocks))
        ]
        slot_bytes = self._num_ranks * max(shard.nbytes for shard in self._shards)
        self._slots = [torch.empty(slot_bytes, dtype=torch.uint8, device=device) for _ in range(NUM_SLOTS)]
        for number, block in enumerate(self._blocks):
            for name, tensor in block.state_dict(keep_vars=True).items():
                _replace(block, name, self._view(self._spans[f"{path}.{number}.{name}"], tensor))

    @contextmanager
    def in_order(self) -> Iterator[Iterator[SomeBlock]]:
        """Yield the blocks from first to last, gathering each while the one before computes.

        When the context ends, no gather is under way, also if not all blocks were asked for.
        """
        pending: list[dist.Work] = []

        def gathered() -> Iterator[SomeBlock]:
            for number, block in enumerate(self._blocks):
                pending.pop().wait()
                if number + 1 < len(self._blocks):
                    # This overwrites the weights of the block before. On CUDA the gather waits for what the
                    # present stream was given so far, which are all kernels that read them.
                    pending.append(self._gather(number + 1))
                yield block

        pending.append(self._gather(0))
        try:
            yield gathered()
        finally:
            for work in pending:
                work.wait()

    def holds(self, module: str) -> bool:
        """Return whether this rank's shard has a part of a module's own tensors.

        Modules outside the blocks are not sharded, so every rank holds them.
        """
        if not module.startswith(f"{self._path}."):
            return True
        return any(
            name.rpartition(".")[0] == module and self._overlap(span) for name, span in self._spans.items()
        )

    def keep(self, name: str) -> None:
        """Copy this rank's part of what was written to a parameter or buffer to the shard.

        Tensors outside the blocks are not sharded and stay where they are.
        """
        if span := self._spans.get(name):
            self._copy(span, self._slots[span.block % NUM_SLOTS][span.start : span.stop])

    def store(self, name: str, tensor: Tensor) -> None:
        """Copy this rank's part of a tensor to the shard. The tensor has the dtype of the one it replaces."""
        span = self._spans[name]
        assert tensor.nbytes == span.stop - span.start
        self._copy(span, tensor.contiguous().view(-1).view(torch.uint8))

    def _lay_out(self, number: int) -> int:
        """Lay out the tensors of a block, and return the bytes of a shard."""
        stop = 0
        for name, tensor in self._blocks[number].state_dict().items():
            start = _aligned(stop)
            stop = start + tensor.nbytes
            self._spans[f"{self._path}.{number}.{name}"] = Span(number, start, stop)
        return _aligned(-(-stop // self._num_ranks))

    def _view(self, span: Span, like: Tensor) -> Tensor:
        """Return the tensor of a block's slot that has this place."""
        content = self._slots[span.block % NUM_SLOTS][span.start : span.stop]
        return content.view(like.dtype).view(like.shape)

    def _gather(self, number: int) -> dist.Work:
        """Begin to gather a block into its slot."""
        shard = self._shards[number]
        slot = self._slots[number % NUM_SLOTS][: self._num_ranks * shard.nbytes]
        return start_gather(slot, shard, self._group)

    def _overlap(self, span: Span) -> tuple[int, int] | None:
        """Return where the common bytes of a span and this rank's shard begin and end; None without any."""
        shard_bytes = self._shards[span.block].nbytes
        first = max(span.start, self._rank * shard_bytes)
        last = min(span.stop, (self._rank + 1) * shard_bytes)
        return (first, last) if first < last else None

    def _copy(self, span: Span, content: Tensor) -> None:
        """Copy what this rank holds of the bytes of a tensor to the shard."""
        if overlap := self._overlap(span):
            first, last = overlap
            shard = self._shards[span.block]
            begin = self._rank * shard.nbytes
            shard[first - begin : last - begin].copy_(content[first - span.start : last - span.start])


def start_gather(whole: Tensor, shard: Tensor, group: dist.ProcessGroup) -> dist.Work:
    """Begin to gather the shards of all ranks, in their order, into one tensor."""
    renamed = getattr(dist, "all_gather_single", None)  # since PyTorch 2.13, which warns of the old name
    gather = renamed or dist.all_gather_into_tensor
    return cast(dist.Work, gather(whole, shard, group=group, async_op=True))


def _aligned(size: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _replace(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or a buffer."""
    owner, _, leaf = name.rpartition(".")
    submodule = module.get_submodule(owner)
    is_parameter = isinstance(getattr(submodule, leaf), nn.Parameter)
    setattr(submodule, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
