"""Shard one axis of a tensor evenly over the ranks of a group, and gather it again."""

from math import gcd

import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel


def shard(
    parallel: ContextParallel, x: Float[Tensor, "b g all_m *rest"], unit: int = 1
) -> Float[Tensor, "b g m *rest"]:
    """Return this rank's part of axis 2, padded with zeros. For `unit` see `shard_length`."""
    if parallel.size == 1:
        return x
    shard_size, _ = shard_length(parallel, x.shape[2], unit)
    padded = pad(x, parallel.size * shard_size)
    return padded.chunk(parallel.size, dim=2)[parallel.rank].contiguous()


def gather(
    parallel: ContextParallel, x: Float[Tensor, "b g m *rest"], length: int
) -> Float[Tensor, "b g all_m *rest"]:
    """Return axis 2 of all ranks together, without padding (`length` entries), on every rank."""
    if parallel.size == 1:
        return x
    shards = x.new_empty(parallel.size, *x.shape)
    dist.all_gather(list(shards.unbind()), x.contiguous(), group=parallel.group)
    return rearrange(shards, "p b g m ... -> b g (p m) ...")[:, :, :length]


def shard_length(parallel: ContextParallel, length: int, unit: int = 1) -> tuple[int, int]:
    """Return how many of `length` entries each shard has, and how many of this rank's are not padding.

    The shards of the ranks of `parallel.heads` have a multiple of `unit` entries together.
    """
    multiple = unit // gcd(unit, parallel.heads.size)
    shard_size = -(-length // (parallel.size * multiple)) * multiple
    return shard_size, _filled(length, shard_size, parallel.rank)


def part_lengths(parallel: ContextParallel, length: int, unit: int) -> list[int]:
    """Return how many of `length` entries, without padding, each part of the ring has.

    A part is the shards of the ranks with the same number in their rings. Without a ring, there is one.
    """
    shard_size, _ = shard_length(parallel, length, unit)
    part_size = parallel.heads.size * shard_size
    return [_filled(length, part_size, number) for number in range(parallel.ring.size)]


def local_part_length(parallel: ContextParallel, length: int, unit: int) -> int:
    """Return how many of `length` entries, without padding, the part of this rank has."""
    return part_lengths(parallel, length, unit)[parallel.ring.rank]


def _filled(length: int, part_size: int, number: int) -> int:
    """Return how many of `length` entries are in a part, if as many as possible are in those before it."""
    return min(max(length - number * part_size, 0), part_size)


def pad(x: Float[Tensor, "b g m *rest"], length: int) -> Float[Tensor, "b g all_m *rest"]:
    """Append zeros to axis 2 up to `length` entries."""
    missing = length - x.shape[2]
    return F.pad(x, (0, 0) * (x.ndim - 3) + (0, missing)) if missing else x
