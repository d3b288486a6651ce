"""Products with weights in int8 by the interpreted Triton kernel, in a process of its own.

`python -m tests.model.transformer.int8_cases OUT.json` with TRITON_INTERPRET=1 writes how far they are from
the definition. Inputs are in fp16, since the interpreter cannot multiply in bf16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.transformer.int8 import quantise_rows
from model.transformer.int8_triton import FusedInt8Linear, fused_product


class Case(NamedTuple):
    rows: int
    width_in: int
    width_out: int
    bias: bool = True

    def product(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        draw = torch.Generator().manual_seed(self.rows)
        x = torch.randn(self.rows, self.width_in, generator=draw).half()
        weight, scale = quantise_rows(torch.randn(self.width_out, self.width_in, generator=draw))
        bias = torch.randn(self.width_out, generator=draw).half() if self.bias else None
        return x, weight, scale, bias


CASES = {
    "one row": Case(1, 64, 128),
    "smaller than a tile": Case(3, 5, 7),
    "whole tiles": Case(256, 128, 256, bias=False),
    "odd sizes": Case(129, 201, 257),
    "an incomplete group of tiles": Case(1200, 96, 300),
    "the output projection of a frame": Case(1560, 64, 4096),
}


def main(path: str) -> None:
    """Everything, into a file."""
    torch.set_num_threads(1)
    found: dict[str, object] = {name: _error(*case.product()) for name, case in CASES.items()}
    layer = FusedInt8Linear(nn.Linear(96, 80, dtype=torch.float16).requires_grad_(False))
    x = torch.randn(2, 3, 7, 96).half()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)
    found["in graphs"] = bool(torch.equal(compiled(x), layer(x))) and list(compiled(x).shape)
    found["of a transposed input"] = bool(torch.equal(layer(x.mT.contiguous().mT), layer(x)))
    found["checks"] = torch.library.opcheck(fused_product, CASES["odd sizes"].product())
    Path(path).write_text(json.dumps(found))


def _error(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> float:
    """The largest error of the product, relative to the largest value of its row."""
    expected = x.double() @ (weight.double() * scale.double()).T
    expected += 0 if bias is None else bias.double()
    error = (fused_product(x, weight, scale, bias).double() - expected).abs()
    return float((error / expected.abs().amax(-1, keepdim=True)).max())


if __name__ == "__main__":
    main(*sys.argv[1:])
