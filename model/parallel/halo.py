"""Exchange the border entries of neighbouring shards, which a convolution across the border needs."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel


def halo_exchange(
    parallel: ContextParallel, first: Float[Tensor, "*rest"], last: Float[Tensor, "*rest"]
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Return the last row of the shard before this rank's, and the first row of the shard after it.

    `first` and `last` are this rank's own first and last row. At both ends of the picture the result is zero.
    """
    has_before, has_after = parallel.rank > 0, parallel.rank < parallel.size - 1
    received = list(_exchange(parallel, [first] * has_before + [last] * has_after))
    zeros = [torch.zeros_like(first)]
    before, after = zeros * (not has_before) + received + zeros * (not has_after)
    return before, after


def _exchange(
    parallel: ContextParallel, tensors: Sequence[Float[Tensor, "*rest"]]
) -> Sequence[Float[Tensor, "*rest"]]:
    """Send one tensor to each neighbour, the lower rank first, and receive one from each."""
    if not tensors:
        return []
    sent = torch.stack(list(tensors))
    received = torch.empty_like(sent)
    counts = [int(abs(other - parallel.rank) == 1) for other in range(parallel.size)]
    dist.all_to_all_single(received, sent, counts, counts, group=parallel.group)
    return received.unbind()
