"""Define a linear layer whose weight has one byte for each element and a scale for each row."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Float, Num
from torch import Tensor, nn

SMALLEST_ROW = 1e-12  # avoids division by zero for a row of zeros


class Rows(NamedTuple):
    """Quantised rows, and their scales in fp32: together they stand for `values · scale`."""

    values: Num[Tensor, "r in"]
    scale: Float[Tensor, "r 1"]


def largest_of_rows(x: Float[Tensor, "r in"]) -> Float[Tensor, "r 1"]:
    """Return the largest absolute value of each row in fp32, or a little more than 0."""
    return x.abs().amax(-1, keepdim=True).float().clamp(min=SMALLEST_ROW)


class QuantisedLinear(nn.Linear, ABC):
    """A linear layer with a quantised weight. The bias is kept as it is."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise the weight of a layer."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        rows = self.quantise_rows(linear.weight)
        self.weight = nn.Parameter(rows.values, requires_grad=False)
        self.register_buffer("scale", rows.scale)
        self.bias = linear.bias
        self._dtype = linear.weight.dtype

    @staticmethod
    @abstractmethod
    def quantise_rows(x: Float[Tensor, "r in"]) -> Rows:
        """Return rows in one byte for each element, each row with a scale of its own."""

    def quantised(self, value: Float[Tensor, "out in"]) -> dict[str, Tensor]:
        """Return `weight` and `scale` of a weight, rounded as if the layer had been loaded with it."""
        rows = self.quantise_rows(value.to(self._dtype))
        return {"weight": rows.values, "scale": rows.scale}
