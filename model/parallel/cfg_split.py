"""Split the two predictions of classifier-free guidance between two halves of a group.

Each half (branch) predicts for one text with half of the ranks, so its exchanges around attention send
(p − 2)/(p − 1) of the bytes. The branches exchange their predictions once in a step.
"""

import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from model.parallel.mesh import ContextParallel


def branch_for(parallel: ContextParallel, num_texts: int) -> ContextParallel:
    """Return the ranks that make a forward together: for two texts a branch, if guidance is split."""
    return parallel.cfg_branch if parallel.cfg_branch and num_texts == 2 else parallel


def local_texts(
    branch: ContextParallel, x: Shaped[Tensor, "all_texts ..."]
) -> Shaped[Tensor, "local_texts ..."]:
    """Select the texts that this rank predicts for: one in a branch, otherwise all."""
    return x[branch.cfg_rank : branch.cfg_rank + 1] if branch.cfg_group else x


def gather_texts(
    branch: ContextParallel, x: Float[Tensor, "local_texts ..."]
) -> Float[Tensor, "all_texts ..."]:
    """Return the predictions for all texts, in the order of the texts."""
    if not branch.cfg_group:
        return x
    both = x.new_empty(2, *x.shape)
    dist.all_gather(list(both.unbind()), x.contiguous(), group=branch.cfg_group)
    return both.flatten(0, 1)
