"""Keep weights in the memory of the host, once for all processes of a machine.

For each module that some LoRA changes, the memory holds the module's tensors as the device has them, merged
and then rounded or quantised: those of the base, and those of each LoRA that changes the module. So a switch
only copies bytes, and every switch to a LoRA or back gives the same bits. Of blocks that are streamed, the
memory holds all tensors, and a switch of LoRA copies none of them: blocks are fetched from other addresses.

The memory is a file without a name (`memfd_create`) that all processes map. The kernel frees it when the last
process that has it open ends, in whatever way. The processes share the work of preparing it: each module is
prepared by the first process that locks it, and the kernel releases the locks of a process that ends. A
process that is stuck delays the others by `LONGEST_WAIT_S`: then they prepare its module, too. All of them
write the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from model.transformer.flat_blocks import aligned

LONGEST_WAIT_S = 60.0
"""How long a process waits for another one that has locked a module. To prepare one takes seconds at most."""

NUM_THREADS = 4
"""Modules that a process prepares at a time. One of the released weights takes up to 0.8 GB of the device."""

_POLL_S = 0.05

ModuleTensors = Mapping[str, Tensor]
"""Tensors of a module, by their names in the module."""

Variants = Mapping[str | None, ModuleTensors]
"""Tensors of a module, by the LoRA that is merged into them. None is the base, and may have more tensors."""


@dataclass(frozen=True)
class _Region:
    """The bytes of the memory that hold a tensor."""

    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def view_in(self, memory: Tensor) -> Tensor:
        """Return the tensor as a view of the memory."""
        return memory[self.start : self.start + self.size].view(self.dtype).view(self.shape)


class PreparedWeights:
    """The memory with the tensors of modules, which several processes share."""

    def __init__(self, like: Mapping[str, Variants], fingerprint: str) -> None:
        """Lay out the memory, without allocating it.

        Args:
            like: tensors with the shapes and dtypes of those that will be kept, by module.
            fingerprint: tells the weights from those of other checkpoints.
        """
        self._modules = tuple(like)
        self._regions: dict[tuple[str, str | None], dict[str, _Region]] = defaultdict(dict)
        description = [fingerprint]
        # The memory begins with the digest and a byte for each module, which is 1 when that is prepared.
        self._digest_bytes = hashlib.sha256().digest_size
        stop = self._digest_bytes + len(like)
        for module, variants in like.items():
            for lora, tensors in variants.items():
                for name, tensor in tensors.items():
                    start = aligned(stop)
                    stop = start + tensor.nbytes
                    region = _Region(start, tensor.nbytes, tensor.dtype, tuple(tensor.shape))
                    self._regions[module, lora][name] = region
                    description.append(f"{module} {lora} {name} {region}")
        self.size_bytes = stop
        self._digest = hashlib.sha256("\n".join(description).encode()).digest()
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._descriptor = -1

    def open(self, path: Path) -> bool:
        """Map the memory at a path, and size it if it is new. Return False if it is for other weights.

        Raises OSError.
        """
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        with self._lock(0, LONGEST_WAIT_S):
            unset = bytes(self._digest_bytes)  # also if a process ended before it wrote the digest
            if os.pread(self._descriptor, self._digest_bytes, 0) in {b"", unset}:
                os.ftruncate(self._descriptor, self.size_bytes)
                os.pwrite(self._descriptor, self._digest, 0)
            found = os.pread(self._descriptor, self._digest_bytes, 0)
        if found != self._digest:
            os.close(self._descriptor)
            return False
        self._memory = torch.frombuffer(mmap.mmap(self._descriptor, self.size_bytes), dtype=torch.uint8)
        return True

    def fill(self, prepare: Callable[[str], Variants]) -> None:
        """Prepare each module that no process has prepared, several at a time, and return when all are.

        Modules that another process is preparing come last. If that process ended before it had finished, or
        is stuck, they are prepared here.
        """

        def visit(number: int, module: str, *, is_last: bool) -> None:
            ready = self._digest_bytes + number
            with self._lock(ready, LONGEST_WAIT_S if is_last else 0.0) as is_locked:
                if (is_locked or is_last) and not self._memory[ready]:
                    self._keep(module, prepare(module))
                    self._memory[ready] = 1

        with ThreadPoolExecutor(NUM_THREADS) as threads:
            for is_last in (False, True):
                for _ in threads.map(partial(visit, is_last=is_last), count(), self._modules):
                    pass

    def read(self, module: str, lora: str | None) -> ModuleTensors:
        """Return the tensors of a module as views of the memory, with a LoRA or None for the base."""
        return {name: region.view_in(self._memory) for name, region in self._regions[module, lora].items()}

    @property
    def memory(self) -> Tensor:
        """Return all bytes of the memory."""
        return self._memory

    def _keep(self, module: str, variants: Variants) -> None:
        for lora, tensors in variants.items():
            for name, target in self.read(module, lora).items():
                target.copy_(tensors[name])

    @contextmanager
    def _lock(self, position: int, wait_s: float) -> Iterator[bool]:
        """Lock a byte among processes. Yield False if another one has had it for all of `wait_s`."""
        give_up_at = time.monotonic() + wait_s
        while not (is_locked := self._try_lock(position)) and time.monotonic() < give_up_at:
            time.sleep(_POLL_S)
        try:
            yield is_locked
        finally:
            if is_locked:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, position)

    def _try_lock(self, position: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
        except (BlockingIOError, PermissionError):  # which of the two depends on the system
            return False
        return True
