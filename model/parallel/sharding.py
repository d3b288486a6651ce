"""Shard one axis of a tensor evenly over the ranks of a group, and gather it again."""

import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel


def shard(parallel: ContextParallel, x: Float[Tensor, "b g all_m *rest"]) -> Float[Tensor, "b g m *rest"]:
    """Return this rank's part of axis 2, padded with zeros where the axis does not divide evenly."""
    if parallel.size == 1:
        return x
    return pad_to_multiple(x, parallel.size).chunk(parallel.size, dim=2)[parallel.rank].contiguous()


def gather(
    parallel: ContextParallel, x: Float[Tensor, "b g m *rest"], length: int
) -> Float[Tensor, "b g all_m *rest"]:
    """Return axis 2 of all ranks together, without padding (`length` entries), on every rank."""
    if parallel.size == 1:
        return x
    shards = x.new_empty(parallel.size, *x.shape)
    dist.all_gather(list(shards.unbind()), x.contiguous(), group=parallel.group)
    return rearrange(shards, "p b g m ... -> b g (p m) ...")[:, :, :length]


def shard_length(parallel: ContextParallel, length: int) -> tuple[int, int]:
    """Return how many of `length` entries each shard has, and how many of this rank's are not padding."""
    shard_size = -(-length // parallel.size)
    return shard_size, min(max(length - parallel.rank * shard_size, 0), shard_size)


def pad_to_multiple(x: Float[Tensor, "b g m *rest"], multiple: int) -> Float[Tensor, "b g all_m *rest"]:
    """Append zeros to axis 2 up to a multiple."""
    missing = -x.shape[2] % multiple
    return F.pad(x, (0, 0) * (x.ndim - 3) + (0, missing)) if missing else x
