"""Describe how the tokens of a forward are ordered, where they are, and which attend to which.

Tokens are [b, g, m, c]: g groups, m tokens in each. A group is one latent frame, or with block-sparse
attention the query bricks that cover the same latent frames. Within a group tokens are ordered chunk by
chunk, so that a brick is one contiguous run. On several ranks each rank has a shard of the tokens of every
group.
"""

from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from math import gcd, prod
from typing import NamedTuple

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel
from model.parallel.ring import pass_around
from model.parallel.sharding import gather, local_part_length, pad, part_lengths, shard, shard_length
from model.parallel.ulysses import heads_to_tokens, tokens_to_heads
from model.transformer.attention import KV, attend, attend_to_parts
from model.transformer.block_sparse import block_sparse_attention
from model.transformer.block_sparse_bricks import Bricks, to_bricks
from model.transformer.config import DitConfig, Triple
from model.transformer.rope import rotation_3d

# Along each axis latents are split into chunks (g, gh, gw) of tokens (cf, ch, cw) of values (pf, ph, pw).
LATENTS = "b z (g cf pf) (gh ch ph) (gw cw pw)"
TOKENS = "b g (gh gw cf ch cw)"

SLICES, BLOCK_SPARSE_SLICES = 2, 4
"""Slices in which heads are exchanged over slow links, or as many of them as divide the heads of a rank.

Only the exchange of a single slice is not hidden if attention takes longer. But dense attention is a long
computation for each tile of queries, and the last tiles of each slice leave a part of the GPU idle.
"""


class Window(NamedTuple):
    """The latent frames of a forward. Height and width are in latent rows and columns.

    `first` is the position of the first frame in the clip; the leading `num_condition` frames are clean.
    """

    num_frames: int
    height: int
    width: int
    num_condition: int = 0
    first: int = 0


@dataclass(frozen=True)
class Layout:
    """The tokens of a forward. `grid` and `chunk` are (frames, rows, columns) in tokens, `patch` in latents.

    `rotation` holds cosine and sine of the position of each token on this rank. `num_cached_groups` groups
    come before those of the forward; if it attends to them, their keys and values are given.
    """

    grid: Triple
    chunk: Triple
    patch: Triple
    num_condition_groups: int
    num_cached_groups: int
    rotation: Float[Tensor, "g m 1 half 2"]
    bricks: Bricks | None
    parallel: ContextParallel

    @property
    def num_groups(self) -> int:
        """Number of groups, g."""
        return self.grid[0] // self.chunk[0]

    @property
    def group_size(self) -> int:
        """Number of tokens in a group, on all ranks together."""
        return prod(self.grid) // self.num_groups

    @property
    def shard_size(self) -> int:
        """Number of tokens in a group on each rank, with padding."""
        return self._shard_length[0]

    def patchify(self, latents: Float[Tensor, "b z f h w"]) -> Float[Tensor, "b g m patch"]:
        """Return this rank's tokens. Values of a patch are ordered (channel, frame, row, column)."""
        tokens = rearrange(latents, f"{LATENTS} -> {TOKENS} (z pf ph pw)", **self._sizes)
        return shard(self.parallel, tokens, self._shard_unit)

    def unpatchify(self, values: Float[Tensor, "b g m patch"]) -> Float[Tensor, "b z f h w"]:
        """Return the latents of all ranks. Values of a patch are ordered (frame, row, column, channel)."""
        tokens = gather(self.parallel, values, self.group_size)
        return rearrange(tokens, f"{TOKENS} (pf ph pw z) -> {LATENTS}", **self._sizes)

    def noise_tokens(self, x: Float[Tensor, "b g m c"]) -> Float[Tensor, "b noise_g filled_m c"]:
        """Return this rank's tokens of the noise groups, without padding."""
        _, filled = self._shard_length
        return x[:, self.num_condition_groups :, :filled]

    def group_timesteps(self, timesteps: Float[Tensor, "b f"]) -> Float[Tensor, "b g"]:
        """Return the timestep of each group, whose frames all have the same one."""
        return timesteps[:, :: self.chunk[0]]

    def attend(
        self,
        qkv: tuple[Float[Tensor, "b g m a d"], Float[Tensor, "b g m a d"], Float[Tensor, "b g m a d"]],
        condition_kv: KV | None,
        kv_out: list[KV] | None = None,
    ) -> Float[Tensor, "b g m a d"]:
        """Return self-attention over the tokens of all ranks, and over `condition_kv` before them, if given.

        The keys and values of the tokens are appended to `kv_out`, if given.
        """
        tensors = list(qkv)
        del qkv  # with the list emptied, the tensors are freed before the exchange allocates
        heads, ordered = self.parallel.heads, self._needs_order
        num_slices = 1 if kv_out is not None else self._num_slices(tensors[0].shape[3])
        condition_kvs = repeat(None) if condition_kv is None else condition_kv.chunk_heads(num_slices)
        by_heads = tokens_to_heads(heads, tensors, self._local_part_length, num_slices, ordered=ordered)
        outs = map(self._attend, by_heads, condition_kvs, repeat(kv_out))
        with closing(by_heads):
            return heads_to_tokens(heads, outs, self.num_groups, self.shard_size, ordered=ordered)

    def _attend(
        self,
        qkv: list[Float[Tensor, "b local_a n d"]],
        condition_kv: KV | None,
        kv_out: list[KV] | None,
    ) -> Float[Tensor, "b local_a n d"]:
        """Return `attend` for some of the heads, of which all tokens of this part of the ring are here."""
        q, k, v = qkv
        kv = KV(k, v) if condition_kv is None else condition_kv.append(k, v)
        if kv_out is not None:
            kv_out.append(KV(k.clone(), v.clone()))  # views would keep queries, keys and values alive
        if self.parallel.ring.size > 1:
            return self._attend_in_ring(q, kv, 0 if condition_kv is None else self.num_cached_groups)
        if self.bricks is None:
            return attend(q, *kv, num_condition=self.num_condition_groups * self.group_size)
        return block_sparse_attention(q, *kv, self.bricks)

    def _attend_in_ring(
        self, q: Float[Tensor, "b a n d"], own: KV, num_cached_groups: int
    ) -> Float[Tensor, "b a n d"]:
        """Attend from the tokens of this part of the ring to those of all parts.

        `own` has the keys and values of this part, those of cached groups first.
        """
        if self.bricks is not None:
            # What a query selects among may be in any part, so the keys and values are gathered.
            k, v = (self._gather_parts(x) for x in own)
            return block_sparse_attention(q, k, v, self.bricks) if q.shape[2] else q
        lengths = part_lengths(self.parallel, self.group_size, self._shard_unit)
        num_keys = [(num_cached_groups + self.num_groups) * length for length in lengths]
        num_condition = [self.num_condition_groups * length for length in lengths]

        def with_heads_first(passed: tuple[int, list[Tensor]]) -> tuple[KV, int]:
            number, (k, v) = passed
            return KV(k.transpose(1, 2), v.transpose(1, 2)), num_condition[number]

        token_by_token = [x.transpose(1, 2).contiguous() for x in own]
        with closing(pass_around(self.parallel.ring, token_by_token, num_keys)) as passing:
            return attend_to_parts(
                q, map(with_heads_first, passing), self.num_condition_groups * self._local_part_length
            )

    def _gather_parts(self, x: Float[Tensor, "b a n d"]) -> Float[Tensor, "b a s d"]:
        """Return the keys or values of all parts of the ring, given those of this one."""
        x = rearrange(x, "b a (g m) d -> b g m a d", g=self.num_groups)
        padded = pad(x, self.parallel.heads.size * self.shard_size)
        return gather(self.parallel.ring, padded, self.group_size).flatten(1, 2).transpose(1, 2)

    def _num_slices(self, num_heads: int) -> int:
        """Return in how many slices the heads of this rank are exchanged (`model.parallel.ulysses`).

        In a ring, attention already goes on while keys and values travel.
        """
        heads = self.parallel.heads
        if not heads.has_slow_links or self.parallel.ring.size > 1:
            return 1
        return gcd(num_heads // heads.size, SLICES if self.bricks is None else BLOCK_SPARSE_SLICES)

    @property
    def _needs_order(self) -> bool:
        """Return whether attention depends on the order of the tokens, or padding has to be left out."""
        has_parts = self.parallel.ring.size > 1 or self.bricks is not None or self.num_condition_groups > 0
        return has_parts or self.group_size % self.parallel.size > 0

    @property
    def _local_part_length(self) -> int:
        """Return how many tokens of a group this part of the ring has: all without a ring."""
        return local_part_length(self.parallel, self.group_size, self._shard_unit)

    @property
    def _shard_length(self) -> tuple[int, int]:
        return shard_length(self.parallel, self.group_size, self._shard_unit)

    @property
    def _shard_unit(self) -> int:
        return _shard_unit(self.parallel, self.chunk if self.bricks else None)

    @property
    def _sizes(self) -> dict[str, int]:
        """Return the sizes of the axes in LATENTS and TOKENS."""
        num_chunks = [side // chunk for side, chunk in zip(self.grid, self.chunk, strict=True)]
        sizes = (*num_chunks, *self.chunk, *self.patch)
        return dict(zip(("g", "gh", "gw", "cf", "ch", "cw", "pf", "ph", "pw"), sizes, strict=True))


def build_layout(config: DitConfig, window: Window, parallel: ContextParallel, *, sparse: bool) -> Layout:
    """Return the layout of a forward over these frames, with block-sparse or dense attention.

    A single latent frame is always attended to densely.
    """
    grid = (window.num_frames, window.height // config.patch_size[1], window.width // config.patch_size[2])
    bricks = (
        _bricks(config, grid, window.num_condition, parallel) if sparse and window.num_frames > 1 else None
    )
    chunk = bricks.chunk_q if bricks else (1, *grid[1:])
    unit = _shard_unit(parallel, chunk if bricks else None)
    rotation = rotation_3d(grid, config.head_dim, window.first, parallel.device)
    rotation = to_bricks(rotation.flatten(3).flatten(0, 2), grid, chunk)
    rotation = rotation.view(1, grid[0] // chunk[0], -1, 1, config.head_dim // 2, 2)
    return Layout(
        grid=grid,
        chunk=chunk,
        patch=config.patch_size,
        num_condition_groups=window.num_condition // chunk[0],
        num_cached_groups=window.first // chunk[0],
        rotation=shard(parallel, rotation, unit)[0],
        bricks=bricks,
        parallel=parallel,
    )


def _shard_unit(parallel: ContextParallel, brick: Triple | None) -> int:
    """Return how many tokens stay together in a part of a ring: those of a query brick, if there are any."""
    return prod(brick) if brick and parallel.ring.size > 1 else 1


def _bricks(config: DitConfig, grid: Triple, num_condition: int, parallel: ContextParallel) -> Bricks:
    params = config.bsa_params
    brick = params.chunk_3d_shape_q
    group_size, unit = brick[0] * grid[1] * grid[2], _shard_unit(parallel, brick)
    return Bricks(
        grid=grid,
        chunk_q=brick,
        chunk_k=params.chunk_3d_shape_k,
        num_condition_frames=num_condition,
        sparsity=params.sparsity,
        cdf_threshold=params.cdf_threshold,
        local_bricks=local_part_length(parallel, group_size, unit) // prod(brick),
    )
