"""Exchange tokens for heads around attention (DeepSpeed Ulysses, arXiv 2309.14509).

Outside attention each rank has a shard of the tokens and all heads. Inside it has a shard of the heads and
all tokens, or those of its part of a ring (`model.parallel.ring`). The first axis of what is sent numbers the
receiving ranks, `p`; of what is received, the sending ranks.
"""

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel
from model.parallel.sharding import pad


def tokens_to_heads(
    parallel: ContextParallel,
    tensors: list[Float[Tensor, "b g m a d"]],
    length: int,
    *,
    ordered: bool = True,
) -> list[Float[Tensor, "b local_a n d"]]:
    """Exchange a shard of the tokens of all heads for all tokens of a shard of the heads.

    All tensors (query, key and value) travel in one exchange. `length` is the number of tokens in a group on
    all ranks, without padding. On several ranks the list is emptied before the exchange: if nothing else
    holds the tensors, their memory can be used for what is received.

    If `ordered`, the tokens come group by group, which takes a copy. Otherwise they come in the order of the
    ranks that sent them, padding included, and are views of what is received.
    """
    if parallel.size > 1:
        received = _all_to_all(parallel, _pack(parallel.size, tensors))
        if not ordered:
            return list(rearrange(received, "p g m b qkv a d -> qkv b a (p g m) d").unbind())
        tensors = list(rearrange(received, "p g m b qkv a d -> qkv b g (p m) a d").unbind())
    return [rearrange(x[:, :, :length], "b g m a d -> b (g m) a d").transpose(1, 2) for x in tensors]


def heads_to_tokens(
    parallel: ContextParallel,
    x: Float[Tensor, "b local_a n d"],
    num_groups: int,
    shard_size: int,
    *,
    ordered: bool = True,
) -> Float[Tensor, "b g m a d"]:
    """Reverse `tokens_to_heads` for the result of attention.

    Each rank gets `shard_size` tokens of each group. Padding that `tokens_to_heads` left out comes back as
    zeros.
    """
    p = parallel.size
    if not ordered and p > 1:
        sent = rearrange(x, "b a (p g m) d -> p g m b a d", p=p, g=num_groups)
    else:
        x = pad(rearrange(x, "b a (g m) d -> b g m a d", g=num_groups), p * shard_size)
        if p == 1:
            return x
        sent = rearrange(x, "b g (p m) a d -> p g m b a d", p=p)
    return rearrange(_all_to_all(parallel, sent), "p g m b a d -> b g m (p a) d")


def _pack(p: int, tensors: list[Float[Tensor, "b g m a d"]]) -> Float[Tensor, "p g m b _ local_a d"]:
    """Copy the tensors to one, ordered by the rank that receives each part, and empty the list.

    Samples and tensors are within a token, so that the tokens of all ranks have one stride.
    """
    b, g, m, a, d = tensors[0].shape
    packed = tensors[0].new_empty(p, g, m, b, len(tensors), a // p, d)
    for i, x in enumerate(tensors):
        packed[..., i, :, :] = rearrange(x, "b g m (p a) d -> p g m b a d", p=p)
    tensors.clear()
    return packed


def _all_to_all(parallel: ContextParallel, x: Float[Tensor, "p ..."]) -> Float[Tensor, "p ..."]:
    """Send entry i of axis 0 to rank i, and receive one entry from each rank."""
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, x.contiguous(), group=parallel.group)
    return received
