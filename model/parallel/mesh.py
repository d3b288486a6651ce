"""Divide the processes that torchrun started into groups that each make one video."""

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor

from model.parallel.device import prioritise_exchanges
from model.parallel.links import has_slow_links
from model.spec.errors import GroupError

CPU = torch.device("cpu")
NOTHING_TO_SHARD = "weights can be sharded only if at least two ranks make a video together"


@dataclass(frozen=True)
class ContextParallel:
    """The ranks that share one video, seen from one of them. Without arguments: a single rank.

    Attributes:
        device: the device of this rank.
        size: number of ranks in the group.
        rank: number of this rank in the group; rank 0 is the leader.
        group: the process group; None for a single rank.
        replica: number of this group among `num_replicas` groups, which exchange nothing.
        num_replicas: number of groups.
        cfg_branch: where guidance is split, the half of the group that predicts for the same text as this
            rank.
        cfg_rank: in a branch, the index of the text that it predicts for.
        cfg_group: in a branch, the process group of this rank and its counterpart in the other branch.
        weights_group: a second process group of all ranks of the group, over which they shard the weights of
            the transformer's blocks; None if each rank holds all weights.
        ring_and_heads: in a group with a ring, this rank's place among the ranks of `ring`, and among
            those of `heads`, which are consecutive ranks of the group; None without a ring.
        has_slow_links: whether exchanges among the ranks take long enough to go on while attention computes.
        wider: in a world whose ranks work alone or together, this rank's place in the block of each greater
            width.
    """

    device: torch.device = CPU
    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    replica: int = 0
    num_replicas: int = 1
    cfg_branch: "ContextParallel | None" = None
    cfg_rank: int = 0
    cfg_group: dist.ProcessGroup | None = None
    weights_group: dist.ProcessGroup | None = None
    ring_and_heads: "tuple[ContextParallel, ContextParallel] | None" = None
    has_slow_links: bool = False
    wider: "tuple[ContextParallel, ...]" = ()

    @property
    def is_leader(self) -> bool:
        """Tell whether this rank has the text encoder, the inputs and the random numbers."""
        return self.rank == 0

    @property
    def ring(self) -> "ContextParallel":
        """Return the ranks with the same heads, which pass keys and values around; one without a ring."""
        return self.ring_and_heads[0] if self.ring_and_heads else SINGLE

    @property
    def heads(self) -> "ContextParallel":
        """Return the ranks that divide the heads in attention; all without a ring."""
        return self.ring_and_heads[1] if self.ring_and_heads else self

    def divides(self, num_heads: int) -> bool:
        """Return whether the attention heads divide evenly among the ranks of `heads`."""
        return num_heads % self.heads.size == 0

    def check_heads(self, num_heads: int) -> None:
        """Raise GroupError unless the attention heads divide evenly among the ranks of `heads`."""
        if not self.divides(num_heads):
            raise GroupError(f"{self.heads.size} ranks cannot share {num_heads} attention heads evenly")


SINGLE = ContextParallel()


@dataclass(frozen=True)
class FileRendezvous:
    """A file in which all `num_ranks` ranks of one machine meet, a new one for each start.

    A process that can write to it can run code in the ranks, so its folder must be private.
    """

    path: Path
    num_ranks: int

    def open(self, timeout: timedelta) -> dict[str, Any]:
        """Return the store, rank and size that `init_process_group` takes."""
        store = dist.FileStore(str(self.path), self.num_ranks)  # type: ignore[attr-defined]
        store.set_timeout(timeout)
        return {"store": store, "rank": dist.get_node_local_rank(), "world_size": self.num_ranks}


@dataclass(frozen=True)
class StoreRendezvous:
    """A TCP store in which all `num_ranks` ranks of several machines meet, by a new `name` for each start.

    The store has no password, and ranks unpickle what others send, so its network must be private.

    Attributes:
        first_rank: the rank of the first process on this machine.
    """

    host: str
    port: int
    name: str
    first_rank: int
    num_ranks: int

    def open(self, timeout: timedelta) -> dict[str, Any]:
        """Return the store, rank and size that `init_process_group` takes. Raises `dist.DistNetworkError`."""
        store = dist.TCPStore(self.host, self.port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
        return {
            "store": dist.PrefixStore(self.name, store),  # type: ignore[attr-defined]
            "rank": self.first_rank + dist.get_node_local_rank(),
            "world_size": self.num_ranks,
        }


def join(  # noqa: PLR0913 - options by name
    device_type: str,
    size: int | Literal["auto"] | None,
    timeout_s: float,
    *,
    split_guidance: bool = True,
    rendezvous: FileRendezvous | StoreRendezvous | None = None,
    shard_weights: bool = False,
    ring_degree: int = 1,
) -> ContextParallel:
    """Join the ranks that torchrun started, `size` (default: all) to a video. Raises GroupError.

    If `size` is `auto`, each rank is alone, and `wider` has its place in the block of each greater width.

    `timeout_s` bounds each wait for another rank. For the other options see `divide`.
    Without `rendezvous` the ranks meet at the address that torchrun gives them, where a TCP server listens on
    all interfaces.
    """
    if not dist.is_torchelastic_launched():
        if size not in (None, 1):
            raise GroupError(f"{size} ranks to a video, but torchrun has not started them")
        if shard_weights:
            raise GroupError(NOTHING_TO_SHARD)
        _check_ring(1, ring_degree)
        return ContextParallel(device=torch.device(device_type))
    device = CPU
    if device_type == "cuda":
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
        prioritise_exchanges()
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        timeout=timeout,
        device_id=device if device_type == "cuda" else None,
        **rendezvous.open(timeout) if rendezvous else {},
    )
    if size == "auto":
        return divide_into_blocks(device, split_guidance=split_guidance, timeout=timeout)
    return divide(
        device,
        size or dist.get_world_size(),
        split_guidance=split_guidance,
        shard_weights=shard_weights,
        timeout=timeout,
        ring_degree=ring_degree,
    )


def divide_into_blocks(
    device: torch.device, *, split_guidance: bool = True, timeout: timedelta | None = None
) -> ContextParallel:
    """Form the process groups of all blocks: 2, 4, … consecutive ranks that can make a video together.

    The first rank of a block is a multiple of its width, so each rank is in one block of each width. Blocks
    without a common rank exchange nothing, so each can run a job of its own. For `timeout` see `divide`.
    """
    widths = takewhile(lambda width: width <= dist.get_world_size(), (2**n for n in count(1)))
    return ContextParallel(
        device=device,
        wider=tuple(
            divide(device, width, split_guidance=split_guidance, timeout=timeout) for width in widths
        ),
    )


def divide(
    device: torch.device,
    size: int,
    *,
    split_guidance: bool = True,
    shard_weights: bool = False,
    timeout: timedelta | None = None,
    ring_degree: int = 1,
) -> ContextParallel:
    """Divide all ranks of the default process group into groups of `size`. Raises GroupError.

    With `split_guidance`, a group of even size makes the two predictions of guidance in two halves. With
    `shard_weights`, the ranks of a group, at least two, share the weights of the blocks. A ring of
    `ring_degree` ranks divides the queries of attention; of the ranks of a group, each `size / ring_degree`
    consecutive ones then divide the heads. Ranks of a group wait for each other `timeout` at most (default:
    that of the backend).
    """
    world_size = dist.get_world_size()
    if world_size % size:
        raise GroupError(f"{world_size} ranks cannot be divided into groups of {size}")
    if shard_weights and size == 1:
        raise GroupError(NOTHING_TO_SHARD)
    _check_ring(size, ring_degree)
    ranks = torch.arange(world_size).view(world_size // size, ring_degree, size // ring_degree)
    group = _in_row(device, ranks.flatten(1), timeout)
    return replace(
        group,
        replica=dist.get_rank() // size,
        num_replicas=world_size // size,
        cfg_branch=_cfg_branch(device, ranks, timeout) if split_guidance and size % 2 == 0 else None,
        weights_group=_weights_group(size, timeout) if shard_weights else None,
        ring_and_heads=_ring_and_heads(device, ranks, timeout),
    )


def _check_ring(size: int, ring_degree: int) -> None:
    if ring_degree < 1 or size % ring_degree:
        raise GroupError(f"{size} ranks cannot be divided by a ring of {ring_degree}")


def _cfg_branch(device: torch.device, ranks: Tensor, timeout: timedelta | None) -> ContextParallel:
    """Return this rank's half of its group, given all ranks [replica, ring, heads]; half of two is one rank.

    A ring of even size is halved, so that its links between the halves are not used; otherwise the heads are.
    """
    if ranks.shape[1] % 2 == 0:
        halves = torch.unflatten(ranks, 1, (2, -1))
    else:
        halves = torch.unflatten(ranks, 2, (2, -1)).movedim(2, 1)
    of_texts = halves.flatten(2)
    counterparts = _in_row(device, of_texts.mT, timeout)
    return replace(
        _in_row(device, of_texts, timeout),
        cfg_rank=counterparts.rank,
        cfg_group=counterparts.group,
        ring_and_heads=_ring_and_heads(device, halves.flatten(0, 1), timeout),
    )


def _ring_and_heads(
    device: torch.device, ranks: Tensor, timeout: timedelta | None
) -> tuple[ContextParallel, ContextParallel] | None:
    """Return this rank's places in its ring and among its heads, given all ranks [group, ring, heads]."""
    if ranks.shape[1] == 1:
        return None
    return _in_row(device, ranks.mT, timeout), _in_row(device, ranks, timeout)


def _in_row(device: torch.device, ranks: Tensor, timeout: timedelta | None) -> ContextParallel:
    """Form a process group of each row of ranks, the last axis. Return this rank's place in its own.

    A row of all ranks needs none: it is the default process group.
    """
    rows = ranks.flatten(0, -2).tolist()
    group = dist.group.WORLD
    if len(rows) > 1:
        group, _ = dist.new_subgroups_by_enumeration(rows, timeout=timeout)  # type: ignore[no-untyped-call]
    return ContextParallel(
        device=device,
        size=ranks.shape[-1],
        rank=dist.get_rank(group),
        group=group,
        has_slow_links=has_slow_links(device, group),
    )


def _weights_group(size: int, timeout: timedelta | None) -> dist.ProcessGroup:
    """Return a second process group of this rank's group of `size` ranks."""
    group, _ = dist.new_subgroups(size, timeout=timeout)  # type: ignore[no-untyped-call]
    return cast(dist.ProcessGroup, group)


def leave() -> None:
    """Destroy the default process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
