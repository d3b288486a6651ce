"""Pass keys and values around a ring of ranks while attention computes (Ring Attention, arXiv 2310.01889).

Inside attention, the ranks of a ring have the same heads, and each has the queries, keys and values of a part
of the tokens.
"""

from collections.abc import Generator, Sequence

import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel


def pass_around(
    ring: ContextParallel, tensors: list[Float[Tensor, "b _ a d"]], lengths: Sequence[int]
) -> Generator[tuple[int, list[Float[Tensor, "b _ a d"]]], None, None]:
    """Yield the tensors of each rank of the ring with its number, beginning with those of this rank.

    While the caller uses the tensors of one rank, they are sent to the next rank, and those that follow are
    received. The tensors of rank i are `lengths[i]` long along axis 1, and otherwise equal in shape.
    Close the iterator, also after an error: then nothing is under way.
    """
    for step in range(ring.size):
        owner = (ring.rank - step) % ring.size
        coming: list[Tensor] = []
        under_way: list[dist.Work] = []
        if step + 1 < ring.size:
            length = lengths[(owner - 1) % ring.size]
            coming = [x.new_empty(x.shape[0], length, *x.shape[2:]) for x in tensors]
            under_way = _exchange(ring, tensors, coming)
        try:
            yield owner, tensors
        finally:
            for work in under_way:
                work.wait()
        tensors = coming


def _exchange(ring: ContextParallel, going: list[Tensor], coming: list[Tensor]) -> list[dist.Work]:
    """Begin to send tensors to the next rank and to receive others from the one before. Skip empty ones."""
    following, preceding = (ring.rank + 1) % ring.size, (ring.rank - 1) % ring.size
    transfers = [
        dist.P2POp(transfer, x, group=ring.group, group_peer=peer)
        for transfer, tensors, peer in ((dist.isend, going, following), (dist.irecv, coming, preceding))
        for x in tensors
        if x.numel()
    ]
    return dist.batch_isend_irecv(transfers) if transfers else []
