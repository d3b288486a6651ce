"""Send a clip from the leader to all ranks in pieces, at the size and length at which they encode it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.io.pixels import Pixels, padded, stretch_positions, stretched, to_floats
from model.parallel.broadcast import TensorSpec, tensor_from_leader
from model.parallel.mesh import ContextParallel
from model.spec.geometry import Size


@dataclass(frozen=True)
class LeaderClip:
    """A clip whose frames stay with the leader until all ranks read a piece of it.

    Attributes:
        source: the frames on the CPU of the leader. Other ranks know their shape and dtype.
        size: the size to which they are resized.
        positions: where each frame of the clip is in `source`, as for `stretched`.
    """

    source: Pixels | TensorSpec
    size: Size
    positions: Float[Tensor, " frames"]

    @classmethod
    def stretched(cls, source: Pixels, size: Size, length: int) -> "LeaderClip":
        """Return a clip of another size and length."""
        return cls(source, size, stretch_positions(len(source), length))

    @classmethod
    def unchanged(cls, source: Pixels) -> "LeaderClip":
        """Return a clip of the frames as they are."""
        return cls(source, Size(*source.shape[1:3]), torch.arange(float(len(source))))

    def padded(self, front: int, back: int) -> "LeaderClip":
        """Return a clip that repeats the first and the last frame."""
        return LeaderClip(self.source, self.size, padded(self.positions, front, back))

    def read(
        self, parallel: ContextParallel, frames: slice
    ) -> Float[Tensor, "new_frames new_height new_width 3"]:
        """Return some of the frames on the device of every rank. All ranks call this together."""
        positions = self.positions[frames]
        first = int(positions.min())
        last = min(math.ceil(float(positions.max())), self.source.shape[0] - 1)
        piece = tensor_from_leader(parallel, self._source_frames(first, last + 1))
        return stretched(piece, self.size, positions - first)

    def _source_frames(self, first: int, end: int) -> Float[Tensor, "_ _ _ 3"] | TensorSpec:
        if isinstance(self.source, TensorSpec):
            return TensorSpec((end - first, *self.source.shape[1:]), torch.float32)
        return to_floats(self.source[first:end])

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled for the other ranks: all but the frames."""
        return self.__dict__ | {"source": TensorSpec(tuple(self.source.shape), self.source.dtype)}
