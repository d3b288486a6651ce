"""Keep the weights of blocks in the memory of the host, and copy each to the device under the one before.

On CUDA the copies run on a stream of their own, from page-locked memory. On a CPU they run in a thread, so
that they overlap with the computation as they do there.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from model.spec.errors import DeviceError
from model.spec.memory import format_bytes
from model.transformer.flat_blocks import Fetch, FlatBlocks, SomeBlock, Span


@runtime_checkable
class Copier(Protocol):
    """Copies blocks while others compute."""

    def start(self, source: Tensor, target: Tensor) -> Fetch:
        """Begin a copy, after what was asked for so far has used the target."""
        ...


class StreamedBlocks(FlatBlocks[SomeBlock]):
    """Blocks whose weights are in the memory of the host."""

    def __init__(
        self,
        path: str,
        blocks: Iterable[SomeBlock],
        device: torch.device,
        copier: Copier | None = None,
    ) -> None:
        """Allocate the buffers in the memory of the host, and the slots on the device.

        Args:
            path: path of the blocks in the transformer whose modules and tensors are named.
            blocks: blocks on any device, usually meta; their weights are lost.
            device: device of this rank.
            copier: copies the blocks; by default as the device does it best.
        """
        self._is_on_cuda = device.type == "cuda"
        self._copier = copier or (StreamCopier(device) if self._is_on_cuda else ThreadCopier())
        super().__init__(path, blocks, device)

    def _allocate(self, block_bytes: Sequence[int]) -> int:
        self._buffers = [torch.empty(size, dtype=torch.uint8) for size in block_bytes]
        if self._is_on_cuda:
            for buffer in self._buffers:
                lock_pages(buffer)
        return max(block_bytes)

    def _fetch(self, number: int, slot: Tensor) -> Fetch:
        buffer = self._buffers[number]
        return self._copier.start(buffer, slot[: buffer.nbytes])

    def _write(self, span: Span, content: Tensor) -> None:
        if self._is_on_cuda:
            torch.cuda.current_stream().synchronize()  # copies to the device may still read the buffers
        self._buffers[span.block][span.start : span.stop].copy_(content)

    def _has_part_of(self, span: Span) -> bool:
        return True


class StreamCopier:
    """Copies on a CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch's

    def start(self, source: Tensor, target: Tensor) -> Fetch:
        """Begin a copy, after what the present stream was given so far."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return _Arrival(self._stream.record_event())


class _Arrival(NamedTuple):
    """A copy on another stream."""

    event: torch.cuda.Event

    def wait(self) -> None:
        """Let the present stream wait for the copy. The CPU does not wait."""
        torch.cuda.current_stream().wait_event(self.event)


class ThreadCopier:
    """Copies in a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copy-blocks")

    def start(self, source: Tensor, target: Tensor) -> Fetch:
        """Begin a copy. What used the target has ended, since a CPU computes at once."""
        return _Copy(self._thread.submit(target.copy_, source))


class _Copy(NamedTuple):
    """A copy in another thread."""

    copied: Future[Tensor]

    def wait(self) -> None:
        """Wait for the copy."""
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
