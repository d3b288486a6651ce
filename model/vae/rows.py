"""Shard the rows of a clip's frames over the ranks of a group, for the convolutions of the VAE.

Each rank has an even shard of the rows (the last ones padded): at every resolution of the network the same
part of the picture. A convolution needs one row of each neighbour (halo).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from model.parallel.halo import halo_exchange
from model.parallel.mesh import ContextParallel
from model.parallel.sharding import gather, shard, shard_length


@dataclass(frozen=True)
class Rows:
    """This rank's rows of pictures of `height` latent rows.

    With `channels_last` pictures are stored so, which is what the convolutions of a GPU read and write.
    """

    parallel: ContextParallel
    height: int
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Return the memory format of pictures."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def length(self) -> int:
        """Return the number of latent rows of a shard, padding included."""
        return shard_length(self.parallel, self.height)[0]

    def shard(
        self, x: Float[Tensor, "frames channels all_rows columns"]
    ) -> Float[Tensor, "frames channels rows columns"]:
        """Return this rank's rows of whole pictures, in pixels or latents."""
        return shard(self.parallel, torch.unflatten(x, 2, (self.height, -1))).flatten(2, 3)

    def gather(
        self, x: Float[Tensor, "frames channels rows columns"]
    ) -> Float[Tensor, "frames channels all_rows columns"]:
        """Return whole pictures on every rank."""
        return gather(self.parallel, x, self._num_rows(x.shape[2]))

    def gather_tokens(
        self, x: Float[Tensor, "frames 1 places channels"], width: int
    ) -> Float[Tensor, "frames 1 all_places channels"]:
        """Return whole pictures on every rank, of pictures whose places are listed row by row."""
        return gather(self.parallel, x, self._num_rows(x.shape[2] // width) * width)

    def pad_with_halo(
        self,
        x: Float[Tensor, "frames channels rows columns"],
        past: Float[Tensor, "past_frames channels padded_rows padded_columns"] | None = None,
        *,
        before: bool = True,
    ) -> Float[Tensor, "padded_frames channels padded_rows padded_columns"]:
        """Return the past pictures, if any, followed by x with one row and column more on each side.

        Without `before` there is none above and on the left. Outside the picture there are zeros, between
        shards the rows of the neighbours. This is the only copy that a convolution needs.
        """
        (n, channels, rows, columns), num_past, first = x.shape, 0 if past is None else len(past), int(before)
        sizes = (num_past + n, channels, first + rows + 1, first + columns + 1)
        out = torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=self.memory_format)
        if past is not None:
            out[:num_past] = past
        new, filled = out[num_past:], self._num_filled_rows(rows)
        new[..., -1] = 0
        if before:
            new[..., 0] = 0
        new[:, :, first : first + filled, first:-1] = x[:, :, :filled]
        new[:, :, first + filled : first + rows] = 0
        above, new[:, :, -1] = halo_exchange(self.parallel, new[:, :, first], new[:, :, -2])
        if before:
            new[:, :, 0] = above
        return out

    def _num_rows(self, rows: int) -> int:
        """Return the rows of the whole picture at a resolution where a shard has `rows`."""
        return self.height * (rows // self.length())

    def _num_filled_rows(self, rows: int) -> int:
        """Return how many of a shard's rows are not padding."""
        shard_size, filled = shard_length(self.parallel, self.height)
        return filled * (rows // shard_size)
