"""What a run on the meta device would move and hold: matrix products, bytes between them, exchanges, memory.

Nothing is computed, so a forward of full size is counted in seconds on any machine. `benchmarks.counts` asks.
"""

# What torch hands to a mode has no types of its own.
# ruff: noqa: ANN401

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, UntypedStorage
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.parallel.mesh import ContextParallel

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


class Attention(TorchFunctionMode):
    """Has attention done as by the kernels for CUDA, which leave nothing but their result, token by token."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return an empty result for attention, and the usual result for anything else."""
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        by_token = args[0].transpose(1, 2)
        return torch.empty_like(by_token, memory_format=torch.contiguous_format).transpose(1, 2)


class Traffic(TorchDispatchMode):
    """Counts matrix products, and what everything between them reads and writes of whole tensors.

    A tensor counts where it has at least `least` elements. Every operation reads its inputs and writes its
    outputs once; views cost nothing.
    """

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.products = 0
        self.moved_bytes = 0
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do it, and count it."""
        result = func(*args, **(kwargs or {}))
        moved = [x for x in tree_leaves((args, kwargs, result)) if self._counts(x)]
        name = func.name().partition(".")[0]
        if name in PRODUCTS:
            self.products += self._counts(result)
        elif not _is_view(func) and name not in {"aten::empty", "aten::empty_like"}:
            self.moved_bytes += sum(x.nbytes for x in moved)
            self.operations += bool(moved)
        return result

    def _counts(self, x: object) -> bool:
        return isinstance(x, Tensor) and x.numel() >= self.least


class FusedNorm(TorchFunctionMode):
    """Replace `rms_norm` by the kernel for CUDA, which allocates only its result."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return an empty result for `rms_norm`, and the usual result for anything else."""
        if func is not torch.nn.functional.rms_norm:
            return func(*args, **(kwargs or {}))
        return torch.empty_like(args[0])


class LiveTensors(TorchDispatchMode):
    """Track the bytes of results that are alive, and where in `model/` their sum is largest.

    Tensors that exist before are not counted, nor are those on another device than `device`, if it is given.
    Once `limit_bytes` is set, an operation that exceeds it raises OutOfMemoryError.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.alive_bytes = 0
        self.peak_bytes = 0
        self.peak_place = ""
        self.largest_elements = 0
        self.limit_bytes: int | None = None
        self._device = device
        self._is_paused = False
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}

    def reset_peak(self) -> None:
        """Forget what was alive before and no longer is."""
        gc.collect()
        self.peak_bytes, self.peak_place = self.alive_bytes, "before"

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the results of this context, such as those that stand for tensors of the host."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and update the peak."""
        result = func(*args, **(kwargs or {}))
        if self._is_paused:
            return result
        results = {id(storage): (storage, x) for storage, x in self._storages(result)}
        if new := results.keys() - self._alive.keys():
            new -= {id(storage) for storage, _ in self._storages((args, kwargs))}
        for key in new:
            storage, x = results[key]
            self._add(storage)
            self.largest_elements = max(self.largest_elements, storage.nbytes() // x.itemsize)
        if self.alive_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_place = self.alive_bytes, f"{_model_place()}, {func.name()}"
        if self.limit_bytes is not None and self.alive_bytes > self.limit_bytes:
            raise torch.OutOfMemoryError(f"{self.alive_bytes} bytes are alive: {self.peak_place}")
        return result

    def _storages(self, tree: object) -> Iterator[tuple[UntypedStorage, Tensor]]:
        for x in tree_leaves(tree):
            if isinstance(x, Tensor) and self._device in (None, x.device):
                yield x.untyped_storage(), x

    def _add(self, storage: UntypedStorage) -> None:
        """Count a storage until it is freed. Its object in Python lives as long as the storage."""
        key, size = id(storage), storage.nbytes()

        def free(_: object) -> None:
            del self._alive[key]
            self.alive_bytes -= size

        self._alive[key] = weakref.ref(storage, free)
        self.alive_bytes += size


@dataclass
class Exchanges:
    """Calls and bytes that leave a rank, by the name of the collective."""

    calls: dict[str, int] = field(default_factory=dict)
    sent_bytes: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, sent_bytes: int) -> None:
        """One call."""
        self.calls[name] = self.calls.get(name, 0) + 1
        self.sent_bytes[name] = self.sent_bytes.get(name, 0) + sent_bytes


class Ended:
    """A collective that is not under way."""

    def wait(self) -> None:
        """Return at once."""


@contextmanager
def recorded() -> Iterator[Exchanges]:
    """Record collectives instead of running them: of what a rank gives, all but its own part leaves it."""
    exchanges = Exchanges()

    def all_to_all_single(output: Tensor, given: Tensor, *_: object, **__: object) -> Ended:
        exchanges.note("all_to_all", given.nbytes * (len(given) - 1) // len(given))
        return Ended()

    def all_gather(outputs: list[Tensor], given: Tensor, **_: object) -> None:
        exchanges.note("all_gather", given.nbytes * (len(outputs) - 1))

    def transfer(kind: object, x: Tensor, **_: object) -> int:
        return x.nbytes if kind is torch.distributed.isend else 0

    def batch_isend_irecv(transfers: list[int]) -> list[object]:
        exchanges.note("pass_around", sum(transfers))
        return []

    with patch.multiple(
        torch.distributed,
        all_to_all_single=all_to_all_single,
        all_gather=all_gather,
        P2POp=transfer,
        batch_isend_irecv=batch_isend_irecv,
    ):
        yield exchanges


def ranks_on_meta(ranks: int, ring_degree: int = 1, *, slow_links: bool = False) -> ContextParallel:
    """Return the first of so many ranks, whose exchanges are to be recorded. A ring has fast links."""
    meta = torch.device("meta")
    if ring_degree == 1:
        return ContextParallel(meta, size=ranks, has_slow_links=slow_links)
    ring, heads = ContextParallel(meta, size=ring_degree), ContextParallel(meta, size=ranks // ring_degree)
    return ContextParallel(meta, size=ranks, ring_and_heads=(ring, heads))


def _model_place() -> str:
    """Return file, line and function of the innermost call in `model/`."""
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("model."):
            return f"{name} line {frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside of model/"


def _is_view(func: Any) -> bool:
    returned = [result.alias_info for result in func._schema.returns]  # noqa: SLF001 it says so nowhere else
    return any(alias and not alias.is_write for alias in returned)
