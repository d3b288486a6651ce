"""Context parallelism: several devices share the tokens of one video (Ulysses, arXiv 2309.14509).

The only file that knows of ranks. Everything else asks a frozen `ContextParallel` for its share of the
tokens, and for the trade of tokens for heads around attention; alone, all of that does nothing. Each
rank holds an even share of the positions of every frame (the last ones padded) and, in attention, all
tokens of an even share of the heads. So any number of ranks that divides the heads serves every size.

What else is where: the transformer and the VAE on every rank, which share out the rows of a picture
(`model.rows`); the text encoder, the inputs and the random numbers on the leader alone, which sends what
it made of them to the others (`from_leader`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from model.spec.errors import GroupError, LeaderError, ModelError

Made = TypeVar("Made")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ContextParallel:
    """The ranks that share one video; as it stands without arguments, a single one.

    `replica` of `num_replicas` tells such groups apart, which share nothing. Where guidance asks for two
    predictions at each step, `half` is this rank's half of the group, which makes the one for text number
    `text` by itself and trades it with the other half through `pair`: (p − 2)/(p − 1) of the bytes.
    """

    device: torch.device = CPU
    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    replica: int = 0
    num_replicas: int = 1
    half: "ContextParallel | None" = None
    text: int = 0
    pair: dist.ProcessGroup | None = None

    @property
    def is_leader(self) -> bool:
        """Whether the text encoder, the inputs and the random numbers are here."""
        return self.rank == 0

    def check_heads(self, num_heads: int) -> None:
        """Raise GroupError unless the heads can be shared evenly."""
        if num_heads % self.size:
            raise GroupError(f"{self.size} ranks cannot share {num_heads} attention heads evenly")

    def only_on_leader(self, make: Callable[[], Made]) -> Made | None:
        """What `make` returns on the leader, None elsewhere.

        What it raises ends the wait of all: a ModelError is raised on every rank, any other on the leader
        as it is and as LeaderError elsewhere.
        """
        if self.size == 1:
            return make()
        if not self.is_leader:
            error = self._leaders(None)
            if error is not None:
                raise cast(ModelError, error)
            return None
        try:
            made = make()
        except Exception as error:
            known = isinstance(error, ModelError)
            self._leaders(error if known else LeaderError(f"{type(error).__name__}: {error}"))
            raise
        self._leaders(None)
        return made

    def from_leader(self, build: Callable[[], Made]) -> Made:
        """What `build` returns on the leader, on every rank: a flat dataclass of tensors and plain values.

        The tensors come onto the device. Errors of `build` are shared as those of `only_on_leader`.
        """
        made = self.only_on_leader(build)
        if self.size > 1:
            received = self._leaders(_without_tensors(made))
            made = made if self.is_leader else cast(Made, received)
        return cast(Made, self._with_tensors(made))

    def for_texts(self, count: int) -> "ContextParallel":
        """The ranks that share a forward over so many texts: for two perhaps this rank's half."""
        return self.half if self.half and count == 2 else self

    def share_texts(self, x: Shaped[Tensor, "t ..."]) -> Shaped[Tensor, "mine ..."]:
        """What is predicted here: in a half one text, otherwise all."""
        return x[self.text : self.text + 1] if self.pair else x

    def gather_texts(self, x: Float[Tensor, "mine ..."]) -> Float[Tensor, "t ..."]:
        """The predictions for all texts, in their order."""
        if not self.pair:
            return x
        both = x.new_empty(2, *x.shape)
        dist.all_gather(list(both.unbind()), x.contiguous(), group=self.pair)
        return both.flatten(0, 1)

    def share(self, x: Float[Tensor, "b g m *rest"]) -> Float[Tensor, "b g m *rest"]:
        """This rank's share of m, padded with zeros where m does not divide."""
        if self.size == 1:
            return x
        return _padded(x, self.size).chunk(self.size, dim=2)[self.rank].contiguous()

    def gather(self, x: Float[Tensor, "b g m c"], length: int) -> Float[Tensor, "b g n c"]:
        """The first `length` of m from the shares of all ranks, whole on every rank."""
        if self.size == 1:
            return x
        shares = x.new_empty(self.size, *x.shape)
        dist.all_gather(list(shares.unbind()), x.contiguous(), group=self.group)
        return shares.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]

    def portion(self, length: int) -> tuple[int, int]:
        """How many of `length` each share has, and how many of this rank's are not padding."""
        share = -(-length // self.size)
        return share, min(max(length - self.rank * share, 0), share)

    def beside(
        self, first: Float[Tensor, "*row"], last: Float[Tensor, "*row"]
    ) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
        """What stands beside this rank's share: the last of the one before, the first of the one after.

        Given this rank's own first and last; zeros where there is no other share.
        """
        before, after = self.rank > 0, self.rank < self.size - 1
        received = list(self._from_neighbours([first] * before + [last] * after))
        zeros = [torch.zeros_like(first)]
        above, below = zeros * (not before) + received + zeros * (not after)
        return above, below

    def to_heads(
        self, tensors: Sequence[Float[Tensor, "b g m a d"]], length: int
    ) -> list[Float[Tensor, "b heads n d"]]:
        """Trade a share of the tokens and all heads for all tokens and a share of the heads.

        `length` is m on all ranks together, without padding. One exchange for all tensors.
        """
        if self.size > 1:
            packed = torch.stack([_cut(x, 3, self.size).movedim(3, 0) for x in tensors], dim=1)
            mine = self._exchange(packed).permute(1, 2, 3, 0, 4, 5, 6).flatten(3, 4)
            tensors = mine[:, :, :, :length].unbind()
        return [x.flatten(1, 2).transpose(1, 2) for x in tensors]

    def to_tokens(self, x: Float[Tensor, "b heads n d"], num_groups: int) -> Float[Tensor, "b g m a d"]:
        """The way back of `to_heads`; padding comes back as zeros."""
        x = _cut(x.transpose(1, 2), 1, num_groups)
        if self.size == 1:
            return x
        mine = self._exchange(_cut(_padded(x, self.size), 2, self.size).movedim(2, 0))
        return mine.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)

    def _exchange(self, x: Float[Tensor, "p b *rest"]) -> Float[Tensor, "p b *rest"]:
        """Send the i-th part to rank i; receive one from each."""
        received = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, x.contiguous(), group=self.group)
        return received

    def _from_neighbours(
        self, tensors: Sequence[Float[Tensor, "*shape"]]
    ) -> Sequence[Float[Tensor, "*shape"]]:
        """Give each neighbour one tensor, the one before this rank first; receive one from each."""
        if not tensors:
            return []
        given = torch.stack(list(tensors))
        received = torch.empty_like(given)
        counts = [int(abs(other - self.rank) == 1) for other in range(self.size)]
        dist.all_to_all_single(received, given, counts, counts, group=self.group)
        return received.unbind()

    def _leaders(self, value: object) -> object:
        """The leader's value, without tensors of the device, on every rank."""
        envelope = [value]
        dist.broadcast_object_list(envelope, group=self.group, group_src=0, device=self.device)
        return envelope[0]

    def _with_tensors(self, made: object) -> object:
        """The same with all tensors on the device, the leader's in place of their descriptions."""
        if not dataclasses.is_dataclass(made):
            return made
        tensors = {}
        for entry in dataclasses.fields(made):
            value = getattr(made, entry.name)
            if isinstance(value, Absent):
                value = torch.empty(value.shape, dtype=value.dtype, device=self.device)
            if isinstance(value, Tensor):
                tensors[entry.name] = value.to(self.device).contiguous()
                if self.size > 1:
                    dist.broadcast(tensors[entry.name], group=self.group, group_src=0)
        return dataclasses.replace(cast(Any, made), **tensors)


ALONE = ContextParallel()


@dataclass(frozen=True)
class Absent:
    """A tensor that is still to come."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def join(
    device_type: str, size: int | None, timeout_s: float, split_guidance: bool = True
) -> ContextParallel:
    """Join the ranks that torchrun started, `size` (default: all) to a video. Raises GroupError.

    `timeout_s` bounds each wait for another rank. For `split_guidance` see `divide`.
    """
    if not dist.is_torchelastic_launched():
        if size not in (None, 1):
            raise GroupError(f"{size} ranks to a video, but torchrun has not started them")
        return ContextParallel(device=torch.device(device_type))
    device = CPU
    if device_type == "cuda":
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device_type == "cuda" else None,
    )
    return divide(device, size or dist.get_world_size(), split_guidance)


def divide(device: torch.device, size: int, split_guidance: bool = True) -> ContextParallel:
    """Divide all ranks of this process group into groups of `size`. Raises GroupError.

    Groups of an even size split guidance between their halves, unless told not to.
    """
    world_size = dist.get_world_size()
    if world_size % size:
        raise GroupError(f"{world_size} ranks cannot be divided into groups of {size}")
    mesh = init_device_mesh(device.type, (world_size // size, size), mesh_dim_names=("replica", "context"))
    return ContextParallel(
        device=device,
        size=size,
        rank=mesh.get_local_rank("context"),
        group=mesh.get_group("context"),
        replica=mesh.get_local_rank("replica"),
        num_replicas=world_size // size,
        half=_half(device, size) if split_guidance and size % 2 == 0 else None,
    )


def _half(device: torch.device, size: int) -> ContextParallel:
    """This rank's half of its group of `size`; a group of two has halves of one."""
    shape = (dist.get_world_size() // size, 2, size // 2)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replica", "text", "context"))
    return ContextParallel(
        device=device,
        size=size // 2,
        rank=mesh.get_local_rank("context"),
        group=mesh.get_group("context"),
        text=mesh.get_local_rank("text"),
        pair=mesh.get_group("text"),
    )


def leave() -> None:
    """Leave the ranks that were joined, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _padded(x: Float[Tensor, "b g m *rest"], size: int) -> Float[Tensor, "b g n *rest"]:
    """Zeros after m, up to a multiple of `size`."""
    missing = -x.shape[2] % size
    return F.pad(x, (0, 0) * (x.ndim - 3) + (0, missing)) if missing else x


def _cut(x: Tensor, axis: int, parts: int) -> Tensor:
    """The same with an axis of so many parts before what is left of this one."""
    return torch.unflatten(x, axis, (parts, -1))


def _without_tensors(made: object) -> object:
    """The same with a description in place of each tensor."""
    if not dataclasses.is_dataclass(made):
        return made
    values = {entry.name: getattr(made, entry.name) for entry in dataclasses.fields(made)}
    absent = {name: Absent(tuple(x.shape), x.dtype) for name, x in values.items() if isinstance(x, Tensor)}
    return dataclasses.replace(cast(Any, made), **absent)
