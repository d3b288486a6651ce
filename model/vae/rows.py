"""The rows of a clip's frames that are here, where several devices share a picture.

`model.wan` convolves them: each device has an even share of the rows (the last ones padded), at every
resolution of the network the same part of the picture, and asks its neighbours for the row next to its own.
It does not know which convolution, or how many devices there are.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel


@dataclass(frozen=True)
class Rows:
    """This device's rows of pictures that have `height` latent rows in all."""

    parallel: ContextParallel
    height: int

    def share(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c own w"]:
        """The rows that are here, of a whole picture: pixels or latents."""
        return self.parallel.share(torch.unflatten(x, 2, (self.height, -1))).flatten(2, 3)

    def gather(self, x: Float[Tensor, "n c own w"]) -> Float[Tensor, "n c h w"]:
        """Whole pictures from the rows of all devices, on every device."""
        return self.parallel.gather(x, self._in_all(x.shape[2]))

    def gather_tokens(self, x: Float[Tensor, "n 1 m c"], width: int) -> Float[Tensor, "n 1 hw c"]:
        """The same of pictures laid out as tokens, row by row."""
        return self.parallel.gather(x, self._in_all(x.shape[2] // width) * width)

    def framed(
        self, x: Float[Tensor, "n c own w"], past: Float[Tensor, "k c rows columns"] | None = None
    ) -> Float[Tensor, "all c rows columns"]:
        """Pictures with one row and column more on each side, after those of the past.

        Around the picture there are zeros; between shares there is the neighbour's row. This is the one
        copy that a convolution needs.
        """
        (n, c, own, w), k = x.shape, 0 if past is None else len(past)
        sizes = (k + n, c, own + 2, w + 2)
        out = torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=_order(x))
        if past is not None:
            out[:k] = past
        new, filled = out[k:], self._filled(own)
        new[..., :: w + 1] = 0
        new[:, :, 1 : 1 + filled, 1:-1] = x[:, :, :filled]
        new[:, :, 1 + filled : 1 + own] = 0
        new[:, :, 0], new[:, :, -1] = self.parallel.beside(new[:, :, 1], new[:, :, -2])
        return out

    def _in_all(self, own: int) -> int:
        """Rows of the whole picture, where a share has so many."""
        share, _ = self.parallel.portion(self.height)
        return self.height * (own // share)

    def _filled(self, own: int) -> int:
        """How many of these rows lie in the picture."""
        share, filled = self.parallel.portion(self.height)
        return filled * (own // share)


def _order(x: Tensor) -> torch.memory_format:
    """How pictures lie in memory where convolutions are fastest: channels last on a GPU."""
    return torch.channels_last if x.is_cuda else torch.contiguous_format
