"""How the tokens of one forward shape lie, as data: their order, positions, and who attends to whom.

`model.sample` lays tokens out once for each stage and gives the layout to `model.dit`, whose layers know
nothing of frames, bricks or devices; the pipeline remembers the layouts of the shapes met last. Tokens stand
as [b, g, m, c]: g groups of frames, m tokens in each. A group is a row of chunks (f, h, w): one whole latent
frame, or with block-sparse attention the query bricks that cover the same window. Within a group tokens lie
chunk by chunk, so a brick is one run. Where the work is shared by several devices (`model.parallel`), each
has its share of every group.
"""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel
from model.transformer.attention import KeysValues, attend
from model.transformer.block_sparse import block_sparse_attention
from model.transformer.block_sparse_bricks import Bricks, to_bricks
from model.transformer.config import DitConfig, Triple
from model.transformer.rope import angles_3d


class Window(NamedTuple):
    """Which latent frames a forward is given, of which size in latent rows and columns.

    `first` is the position of the first of them; the leading `num_condition` of them are clean.
    """

    num_frames: int
    height: int
    width: int
    num_condition: int = 0
    first: int = 0


@dataclass(frozen=True)
class Layout:
    """The tokens of one forward shape: their grid and the chunks of their order, (f, h, w), and rotation."""

    grid: Triple
    chunk: Triple
    patch: Triple
    num_condition_groups: int
    turn: Float[Tensor, "g m 1 half 2"]
    bricks: Bricks | None
    parallel: ContextParallel

    @property
    def num_groups(self) -> int:
        """Groups of frames, g."""
        return self.grid[0] // self.chunk[0]

    @property
    def group_size(self) -> int:
        """Tokens in each group on all devices together."""
        return prod(self.grid) // self.num_groups

    def patches(self, latents: Float[Tensor, "b z f h w"]) -> Float[Tensor, "b g m patch"]:
        """This device's tokens: the values of each patch in the order (channel, frame, row, column)."""
        cut = [size for axis in zip(self._chunks, self.chunk, self.patch, strict=True) for size in axis]
        x = latents.reshape(*latents.shape[:2], *cut)
        return self.parallel.share(x.permute(0, 2, 5, 8, 3, 6, 9, 1, 4, 7, 10).flatten(7).flatten(2, 6))

    def latents(self, values: Float[Tensor, "b g m patch"]) -> Float[Tensor, "b z f h w"]:
        """Latents, whole on every device; values within a patch are (frame, row, column, channel)."""
        groups, *rows = self._chunks
        x = self.parallel.gather(values, self.group_size)
        x = x.reshape(len(x), groups, *rows, *self.chunk, *self.patch, -1)
        x = x.permute(0, 10, 1, 4, 7, 2, 5, 8, 3, 6, 9)
        sides = (side * patch for side, patch in zip(self.grid, self.patch, strict=True))
        return x.reshape(*x.shape[:2], *sides)

    def of_noise(self, x: Float[Tensor, "b g m c"]) -> Float[Tensor, "b noise filled c"]:
        """Of this device's tokens those of noise frames, without padding."""
        _, filled = self.parallel.portion(self.group_size)
        return x[:, self.num_condition_groups :, :filled]

    def of_groups(self, timesteps: Float[Tensor, "b f"]) -> Float[Tensor, "b g"]:
        """One timestep for each group; its frames all have the same."""
        return timesteps[:, :: self.chunk[0]]

    def attend(
        self,
        q: Float[Tensor, "b g m a d"],
        k: Float[Tensor, "b g m a d"],
        v: Float[Tensor, "b g m a d"],
        past: KeysValues | None,
    ) -> tuple[Float[Tensor, "b g m a d"], KeysValues]:
        """Attention over all tokens, after those of `past`; also the keys and values attended to."""
        q, k, v = self.parallel.to_heads((q, k, v), self.group_size)
        seen = KeysValues(k, v) if past is None else past.then(k, v)
        if self.bricks is None:
            out = attend(q, *seen, num_condition=self.num_condition_groups * self.group_size)
        else:
            out = block_sparse_attention(q, *seen, self.bricks)
        return self.parallel.to_tokens(out, self.num_groups), seen

    @property
    def _chunks(self) -> Triple:
        f, h, w = (side // chunk for side, chunk in zip(self.grid, self.chunk, strict=True))
        return f, h, w


def lay_out(config: DitConfig, window: Window, sparse: bool, parallel: ContextParallel) -> Layout:
    """The layout of a forward over these frames, with block-sparse attention or dense.

    Block-sparse attention is used only where there is more than one latent frame.
    """
    grid = (window.num_frames, window.height // config.patch_size[1], window.width // config.patch_size[2])
    bricks = _bricks(config, grid, window.num_condition) if sparse and window.num_frames > 1 else None
    chunk = bricks.chunk_q if bricks else (1, *grid[1:])
    angles = to_bricks(angles_3d(grid, config.head_dim, window.first).flatten(0, 2), grid, chunk)
    angles = torch.unflatten(angles, 0, (grid[0] // chunk[0], -1))
    turn = torch.stack([angles.cos(), angles.sin()], dim=-1)[None, :, :, None]
    return Layout(
        grid=grid,
        chunk=chunk,
        patch=config.patch_size,
        num_condition_groups=window.num_condition // chunk[0],
        turn=parallel.share(turn)[0].to(parallel.device),
        bricks=bricks,
        parallel=parallel,
    )


def _bricks(config: DitConfig, grid: Triple, num_condition: int) -> Bricks:
    kept = config.bsa_params
    return Bricks(
        grid=grid,
        chunk_q=kept.chunk_3d_shape_q,
        chunk_k=kept.chunk_3d_shape_k,
        num_condition_frames=num_condition,
        sparsity=kept.sparsity,
        cdf_threshold=kept.cdf_threshold,
    )
