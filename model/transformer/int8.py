"""Store weights in int8, each row with a scale, for GPUs that do not multiply in fp8.

The product is that of the dtype of the model, with a copy of the weight that is made for it. On CUDA,
`model.transformer.int8_triton` has a layer that makes no copy.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.transformer.quantised_linear import QuantisedLinear, Rows, largest_of_rows

LARGEST = torch.iinfo(torch.int8).max


def quantise_rows(x: Float[Tensor, "r in"]) -> Rows:
    """Return rows in int8, each scaled so that its largest value is 127 or -127."""
    scale = largest_of_rows(x) / LARGEST
    return Rows((x / scale).round_().to(torch.int8), scale)


class Int8Linear(QuantisedLinear):
    """A linear layer with its weight in int8."""

    quantise_rows = staticmethod(quantise_rows)

    def forward(self, x: Float[Tensor, "*rest in"]) -> Float[Tensor, "*rest out"]:
        """Return the product in the dtype of x."""
        return F.linear(x, (self.weight * self.scale).to(x.dtype), self.bias)
