"""What a run on the meta device would move and hold: matrix products, bytes between them, exchanges, memory.

Nothing is computed, so a forward of full size is counted in seconds on any machine. `benchmarks.counts` asks.
"""

# What torch hands to a mode has no types of its own.
# ruff: noqa: ANN401

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
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

    Tensors that exist before are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self.peak_place = ""
        self.largest_elements = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and update the peak."""
        given = {StorageWeakRef(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if _is_tensor(x)}
        result = func(*args, **(kwargs or {}))
        has_grown = False
        for x in filter(_is_tensor, tree_leaves(result)):
            storage = StorageWeakRef(x.untyped_storage())
            if storage not in given:
                self._alive[storage] = x.untyped_storage().nbytes()
                self.largest_elements = max(self.largest_elements, x.untyped_storage().nbytes() // x.itemsize)
                has_grown = True
        if has_grown and (alive_bytes := self.alive_bytes) > self.peak_bytes:
            self.peak_bytes, self.peak_place = alive_bytes, f"{_model_place()}, {func.name()}"
        return result

    @property
    def alive_bytes(self) -> int:
        """Return the bytes of the results that are alive now."""
        self._alive = {storage: size for storage, size in self._alive.items() if not storage.expired()}
        return sum(self._alive.values())


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

    def all_to_all_single(output: Tensor, given: Tensor, **_: object) -> Ended:
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


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


def _is_view(func: Any) -> bool:
    returned = [result.alias_info for result in func._schema.returns]  # noqa: SLF001 it says so nowhere else
    return any(alias and not alias.is_write for alias in returned)
