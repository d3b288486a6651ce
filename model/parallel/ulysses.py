"""Exchange tokens for heads around attention (DeepSpeed Ulysses, arXiv 2309.14509).

Outside attention each rank has a shard of the tokens and all heads. Inside it has a shard of the heads and
all tokens, or those of its part of a ring (`model.parallel.ring`). The first axis of what is sent numbers the
receiving ranks, `p`; of what is received, the sending ranks.

Heads attend independently of each other. So those of a rank can be exchanged in several *slices*: while
attention computes one, the next arrives, and the result of the one before is sent back.
"""

from collections import deque
from collections.abc import Generator, Iterable
from typing import NamedTuple, cast

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
    num_slices: int = 1,
    *,
    ordered: bool = True,
) -> Generator[list[Float[Tensor, "b local_a n d"]], None, None]:
    """Exchange a shard of the tokens of all heads for all tokens of a shard of the heads, slice by slice.

    All tensors (query, key and value) of a slice travel in one exchange. `length` is the number of tokens in
    a group on all ranks, without padding. On several ranks the list is emptied before the exchanges: if
    nothing else holds the tensors, their memory can be used for what is received.

    If `ordered`, the tokens come group by group, which takes a copy. Otherwise they come in the order of the
    ranks that sent them, padding included, and are views of what is received.

    A single rank has one slice. Close the iterator, also after an error: then nothing is under way.
    """
    if parallel.size == 1:
        yield [_group_by_group(x, length) for x in tensors]
        return
    packed = _pack(parallel.size, tensors, num_slices)
    under_way: deque[_Exchange] = deque()
    try:
        while packed:
            under_way.append(_start(parallel, packed.pop(0)))
        while under_way:
            yield _unpack(under_way.popleft().wait(), length, ordered=ordered)
    finally:
        for exchange in under_way:
            exchange.wait()


def heads_to_tokens(
    parallel: ContextParallel,
    slices: Iterable[Float[Tensor, "b local_a n d"]],
    num_groups: int,
    shard_size: int,
    *,
    ordered: bool = True,
) -> Float[Tensor, "b g m a d"]:
    """Reverse `tokens_to_heads` for the results of attention, each of which is sent before the next is taken.

    Each rank gets `shard_size` tokens of each group. Padding that `tokens_to_heads` left out comes back as
    zeros. After an error nothing is under way.
    """
    p = parallel.size

    def by_rank(x: Float[Tensor, "b local_a n d"]) -> Float[Tensor, "p g m b local_a d"]:
        if not ordered:
            return rearrange(x, "b a (p g m) d -> p g m b a d", p=p, g=num_groups)
        x = pad(rearrange(x, "b a (g m) d -> b g m a d", g=num_groups), p * shard_size)
        return rearrange(x, "b g (p m) a d -> p g m b a d", p=p)

    if p == 1:
        (x,) = slices
        return pad(rearrange(x, "b a (g m) d -> b g m a d", g=num_groups), shard_size)
    under_way: list[_Exchange] = []
    try:
        for x in map(by_rank, slices):
            under_way.append(_start(parallel, x))  # noqa: PERF401 an error has to find those before it here
    finally:
        for exchange in under_way:
            exchange.wait()
    return _join([exchange.received for exchange in under_way])


class _Exchange(NamedTuple):
    """An exchange under way. What is sent is kept until it has arrived."""

    sent: Float[Tensor, "p ..."]
    received: Float[Tensor, "p ..."]
    work: dist.Work

    def wait(self) -> Float[Tensor, "p ..."]:
        """Let what is asked for from now on begin when the tensor has arrived, and return it."""
        self.work.wait()
        return self.received


def _start(parallel: ContextParallel, x: Float[Tensor, "p ..."]) -> _Exchange:
    """Begin to send entry i of axis 0 to rank i, and to receive one entry from each rank."""
    sent = x.contiguous()
    received = torch.empty_like(sent)
    work = dist.all_to_all_single(received, sent, group=parallel.group, async_op=True)
    return _Exchange(sent, received, cast(dist.Work, work))


def _pack(
    p: int, tensors: list[Float[Tensor, "b g m a d"]], num_slices: int
) -> list[Float[Tensor, "p g m b _ local_a d"]]:
    """Copy the tensors to one for each slice, ordered by the rank that receives it, and empty the list.

    Samples and tensors are within a token, so that the tokens of all ranks have one stride.
    """
    b, g, m, a, d = tensors[0].shape
    shape = p, g, m, b, len(tensors), a // (p * num_slices), d
    packed = [tensors[0].new_empty(shape) for _ in range(num_slices)]
    for i, x in enumerate(tensors):
        slices = rearrange(x, "b g m (p slices a) d -> slices p g m b a d", p=p, slices=num_slices)
        for whole, part in zip(packed, slices, strict=True):
            whole[..., i, :, :] = part
    tensors.clear()
    return packed


def _unpack(
    received: Float[Tensor, "p g m b _ local_a d"], length: int, *, ordered: bool
) -> list[Float[Tensor, "b local_a n d"]]:
    """Return the tensors of a slice, each with the tokens of all ranks. See `tokens_to_heads`."""
    if not ordered:
        return list(rearrange(received, "p g m b qkv a d -> qkv b a (p g m) d").unbind())
    by_group = rearrange(received, "p g m b qkv a d -> qkv b g (p m) a d")
    return [_group_by_group(x, length) for x in by_group]


def _group_by_group(x: Float[Tensor, "b g m a d"], length: int) -> Float[Tensor, "b a n d"]:
    """Return the first `length` tokens of each group, without padding."""
    return rearrange(x[:, :, :length], "b g m a d -> b (g m) a d").transpose(1, 2)


def _join(slices: list[Float[Tensor, "p g m b local_a d"]]) -> Float[Tensor, "b g m a d"]:
    """Copy the heads of all slices and ranks into one tensor. Those of a rank are consecutive."""
    p, g, m, b, a, d = slices[0].shape
    joined = slices[0].new_empty(b, g, m, p, len(slices), a, d)
    for i, x in enumerate(slices):
        joined[:, :, :, :, i] = rearrange(x, "p g m b a d -> b g m p a d")
    return joined.flatten(3, 5)
