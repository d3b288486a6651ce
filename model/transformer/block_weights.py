"""Declare how the weights of the blocks come to the device, so that the model need not know."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import Tensor

from model.transformer.block import Block


class BlockWeights(Protocol):
    """The weights of the blocks of a transformer, all or some of which this rank holds."""

    def in_order(self) -> AbstractContextManager[Iterator[Block]]:
        """Yield the blocks from first to last. The weights of a block are valid until the next is asked for.

        All ranks of a group call this together and ask for the same number of blocks.
        """
        ...

    def holds(self, module: str) -> bool:
        """Return whether this rank holds weights of a module of the transformer, given by its path."""
        ...

    def store(self, name: str, tensor: Tensor) -> bool:
        """Keep new content of a parameter or buffer of the transformer, given by its name.

        Return False for a tensor that stays on the device, to which the caller writes.
        """
        ...

    @property
    def streamed(self) -> Collection[str]:
        """Return the names of the tensors that stay in the memory of the host."""
        ...


class ResidentBlocks:
    """Blocks whose weights are on the device all the time."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = blocks

    @contextmanager
    def in_order(self) -> Iterator[Iterator[Block]]:
        """Yield the blocks from first to last."""
        yield iter(self._blocks)

    def holds(self, module: str) -> bool:
        """Return True: this rank holds all weights."""
        return True

    def store(self, name: str, tensor: Tensor) -> bool:
        """Return False: all tensors stay on the device."""
        return False

    @property
    def streamed(self) -> Collection[str]:
        """Return no names: all tensors are on the device."""
        return ()
