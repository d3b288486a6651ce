"""Bring the weights of each block to the device while the block before computes.

Each tensor of a block has a place in one flat buffer. Its content is kept elsewhere: divided among ranks
(`model.parallel.sharded_blocks`) or in the memory of the host (`model.transformer.streamed_blocks`). Before a
block computes, its buffer is fetched into one of two *slots* on the device; the parameters of the block are
views of this slot. Weights are copied byte by byte, so results are exactly those of weights on the device.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

SomeBlock = TypeVar("SomeBlock", bound=nn.Module)

NUM_SLOTS = 2  # one for the block that computes, one for the block that is fetched
ALIGNMENT_BYTES = 256
"""Alignment of each tensor. An allocation of its own has the same on CUDA, so the same kernels are chosen."""


class Span(NamedTuple):
    """The place of a tensor: its block, and its first byte and the byte after its last in the flat buffer."""

    block: int
    start: int
    stop: int


@runtime_checkable
class Fetch(Protocol):
    """A block that is on its way to its slot."""

    def wait(self) -> object:
        """Let the computations that are asked for from now on begin when the block has arrived."""


class FlatBlocks(ABC, Generic[SomeBlock]):
    """Blocks whose weights are kept elsewhere. See `model.transformer.block_weights.BlockWeights`."""

    def __init__(self, path: str, blocks: Iterable[SomeBlock], device: torch.device) -> None:
        """Lay out the buffers, and make all parameters views of the slots.

        Args:
            path: path of the blocks in the transformer whose modules and tensors are named.
            blocks: blocks on any device, usually meta; their weights are lost.
            device: device of this rank.
        """
        self._path, self._blocks = path, list(blocks)
        self._spans: dict[str, Span] = {}
        self._spans_of_modules: dict[str, list[Span]] = defaultdict(list)
        slot_bytes = self._allocate([self._lay_out(number) for number in range(len(self._blocks))])
        self._slots = [torch.empty(slot_bytes, dtype=torch.uint8, device=device) for _ in range(NUM_SLOTS)]
        for number, block in enumerate(self._blocks):
            for name, tensor in block.state_dict(keep_vars=True).items():
                _replace(block, name, self._view(self._spans[f"{path}.{number}.{name}"], tensor))

    @abstractmethod
    def _allocate(self, block_bytes: Sequence[int]) -> int:
        """Take the bytes of the buffer of each block. Return the bytes of a slot that takes any of them."""

    @abstractmethod
    def _fetch(self, number: int, slot: Tensor) -> Fetch:
        """Begin to copy a block to its slot, after what was asked for so far has used the slot."""

    @abstractmethod
    def _write(self, span: Span, content: Tensor) -> None:
        """Keep what is kept here of the bytes of a tensor."""

    @abstractmethod
    def _has_part_of(self, span: Span) -> bool:
        """Return whether a part of a tensor is kept here."""

    @contextmanager
    def in_order(self) -> Iterator[Iterator[SomeBlock]]:
        """Yield the blocks from first to last, fetching each while the one before computes.

        When the context ends, no fetch is under way, also if not all blocks were asked for.
        """
        pending: list[Fetch] = []

        def fetch(number: int) -> None:
            pending.append(self._fetch(number, self._slots[number % NUM_SLOTS]))

        def fetched() -> Iterator[SomeBlock]:
            for number, block in enumerate(self._blocks):
                pending.pop().wait()
                if number + 1 < len(self._blocks):
                    fetch(number + 1)  # overwrites the weights of the block before
                yield block

        fetch(0)
        try:
            yield fetched()
        finally:
            for under_way in pending:
                under_way.wait()

    def holds(self, module: str) -> bool:
        """Return whether a part of a module's own tensors is kept here.

        Modules outside the blocks are on every rank.
        """
        if not module.startswith(f"{self._path}."):
            return True
        return any(map(self._has_part_of, self._spans_of_modules.get(module, ())))

    @property
    def streamed(self) -> Collection[str]:
        """Return the names of the tensors that stay in the memory of the host."""
        return ()

    def store(self, name: str, tensor: Tensor) -> bool:
        """Keep what is kept here of a tensor, which has the dtype of the one that it replaces.

        Return False for a tensor outside the blocks.
        """
        if (span := self._spans.get(name)) is None:
            return False
        assert tensor.nbytes == span.stop - span.start
        self._write(span, tensor.contiguous().view(-1).view(torch.uint8))
        return True

    def _lay_out(self, number: int) -> int:
        """Lay out the tensors of a block, and return the bytes of its buffer."""
        stop = 0
        for name, tensor in self._blocks[number].state_dict().items():
            start = aligned(stop)
            stop = start + tensor.nbytes
            path, span = f"{self._path}.{number}.{name}", Span(number, start, stop)
            self._spans[path] = span
            self._spans_of_modules[path.rpartition(".")[0]].append(span)
        return stop

    def _view(self, span: Span, like: Tensor) -> Tensor:
        """Return the tensor of a block's slot that has this place."""
        content = self._slots[span.block % NUM_SLOTS][span.start : span.stop]
        return content.view(like.dtype).view(like.shape)


def aligned(size: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _replace(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or a buffer."""
    owner, _, leaf = name.rpartition(".")
    submodule = module.get_submodule(owner)
    is_parameter = isinstance(getattr(submodule, leaf), nn.Parameter)
    setattr(submodule, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
