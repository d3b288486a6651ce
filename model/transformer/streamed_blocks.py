"""Keep the weights of blocks in the memory of the host, and copy each to the device under the one before.

The weights are tensors that all processes of the host share (`model.transformer.prepared_weights`), or copies
of this rank alone. On CUDA, blocks are copied on a stream of their own, from page-locked memory. On a CPU
they are copied in a thread, so that this overlaps with the computation as it does there.
"""

from collections.abc import Iterable, KeysView, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from model.spec.errors import DeviceError
from model.spec.memory import format_bytes
from model.transformer.flat_blocks import Fetch, FlatBlocks, SomeBlock, Span


class Piece(NamedTuple):
    """Bytes of a block in the memory of the host, and their place on the device."""

    source: Tensor
    target: Tensor


@runtime_checkable
class Copier(Protocol):
    """Copies blocks while others compute."""

    def start(self, pieces: Sequence[Piece]) -> Fetch:
        """Begin to copy a block, after what was asked for so far has used the targets."""
        ...


class StreamedBlocks(FlatBlocks[SomeBlock]):
    """Blocks whose weights are in the memory of the host.

    At first `store` keeps the tensors that it is given, which must be on the host and stay as they are. After
    `keep_copies` it copies them.
    """

    def __init__(
        self,
        path: str,
        blocks: Iterable[SomeBlock],
        device: torch.device,
        copier: Copier | None = None,
    ) -> None:
        """Allocate the slots on the device. The blocks have no weights yet.

        Args:
            path: path of the blocks in the transformer whose modules and tensors are named.
            blocks: blocks on any device, usually meta; their weights are lost.
            device: device of this rank.
            copier: copies the blocks; by default as the device does it best.
        """
        self._device, self._is_on_cuda = device, device.type == "cuda"
        self._copier = copier or (StreamCopier(device) if self._is_on_cuda else ThreadCopier())
        self._has_copies = False
        super().__init__(path, blocks, device)

    @property
    def streamed(self) -> KeysView[str]:
        """Return the names of all tensors of the blocks."""
        return self._spans.keys()

    def keep_copies(self) -> None:
        """Allocate page-locked memory for copies of all tensors, which `store` makes. Raises DeviceError."""
        self._has_copies = True
        for sources, size in zip(self._sources, self._block_bytes, strict=True):
            buffer = torch.empty(size, dtype=torch.uint8)
            if self._is_on_cuda:
                lock_pages(buffer)
            sources.clear()
            sources[0] = buffer

    def _allocate(self, block_bytes: Sequence[int]) -> int:
        self._block_bytes = block_bytes
        self._sources: list[dict[int, Tensor]] = [{} for _ in block_bytes]  # bytes by their place in the slot
        return max(block_bytes)

    def _fetch(self, number: int, slot: Tensor) -> Fetch:
        return self._copier.start(
            [
                Piece(source, slot[start : start + source.nbytes])
                for start, source in self._sources[number].items()
            ]
        )

    def _write(self, span: Span, content: Tensor) -> None:
        if not self._has_copies:
            self._sources[span.block][span.start] = content
            return
        if self._is_on_cuda:
            # Copies to the device may still read the buffers. A thread that loads weights does not have the
            # device of this rank as its current one.
            torch.cuda.current_stream(self._device).synchronize()
        self._sources[span.block][0][span.start : span.stop].copy_(content)

    def _has_part_of(self, span: Span) -> bool:
        return True


class StreamCopier:
    """Copies on a CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch's

    def start(self, pieces: Sequence[Piece]) -> Fetch:
        """Begin to copy a block, after what the current stream was given so far."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for piece in pieces:
                piece.target.copy_(piece.source, non_blocking=True)
            return _Arrival(self._stream.record_event())


class _Arrival(NamedTuple):
    """A block that is copied on another stream."""

    event: torch.cuda.Event

    def wait(self) -> None:
        """Let the current stream wait for the block. The CPU does not wait."""
        torch.cuda.current_stream().wait_event(self.event)


class ThreadCopier:
    """Copies in a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copy-blocks")

    def start(self, pieces: Sequence[Piece]) -> Fetch:
        """Begin to copy a block. What used the targets has ended, since a CPU computes at once."""
        return _Copy(self._thread.submit(_copy_all, pieces))


def _copy_all(pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        piece.target.copy_(piece.source)


class _Copy(NamedTuple):
    """A block that is copied in another thread."""

    copied: Future[None]

    def wait(self) -> None:
        """Wait for the block."""
        self.copied.result()


def lock_pages(buffer: Tensor) -> None:
    """Lock the pages of a tensor in memory, so that CUDA copies from it without the CPU.

    torch's own page-locked tensors take a power of two of bytes: up to twice as much for a block.

    Raises:
        DeviceError: CUDA cannot lock so much.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call] # torch's
    status = runtime.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)
    if int(status) != 0:
        needed = format_bytes(buffer.nbytes)
        raise DeviceError(f"CUDA cannot lock {needed} more of host memory: error {int(status)}")
