"""Cases of block-sparse attention, and the Triton kernels run on all of them.

`python -m tests.model.transformer.block_sparse_cases OUT.safetensors` with TRITON_INTERPRET=1 does so on the
CPU. It is a process of its own, since Triton decides when it is first imported whether it interprets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.transformer.block_sparse_bricks import Bricks

CUBE = (2, 2, 2)

SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""The shared memory that a program can have, by compute capability (CUDA programming guide)."""

QKV = tuple[Tensor, Tensor, Tensor]


def changed(change: Callable[[Tensor], Tensor], tokens: QKV) -> QKV:
    """The same of q, k and v."""
    q, k, v = tokens
    return change(q), change(k), change(v)


class Case(NamedTuple):
    bricks: Bricks
    head_dim: int = 16
    heads: int = 1
    batch: int = 1
    dtype: torch.dtype = torch.float32

    def tokens(self) -> QKV:
        """q in query-brick order, k and v in key-brick order, in memory as a projection leaves them."""
        generator = torch.Generator().manual_seed(prod(self.bricks.grid) + self.head_dim)
        shape = (3, self.batch, prod(self.bricks.grid), self.heads, self.head_dim)
        q, k, v = torch.randn(shape, generator=generator).to(self.dtype).transpose(2, 3)
        return q, k, v

    def tied(self) -> tuple[Tensor, Tensor]:
        """Pooled queries and keys whose scores are small integers, so that many are equal."""
        generator = torch.Generator().manual_seed(prod(self.bricks.grid) + self.head_dim)
        num_tokens, heads = prod(self.bricks.grid), self.batch * self.heads
        q, k = (
            torch.randint(
                -1, 2, (heads, num_tokens // prod(chunk), self.head_dim), generator=generator
            ).float()
            for chunk in (self.bricks.chunk_q, self.bricks.chunk_k)
        )
        return q, k


CASES = {
    "equal bricks": Case(Bricks((4, 4, 4), CUBE, CUBE, sparsity=0.5)),
    "several samples and heads": Case(Bricks((2, 4, 4), CUBE, CUBE, sparsity=0.5), heads=2, batch=2),
    "an odd number of query bricks": Case(Bricks((2, 2, 6), CUBE, CUBE, sparsity=0.34)),
    "a threshold, so that counts differ": Case(Bricks((4, 4, 4), CUBE, CUBE, cdf_threshold=0.5)),
    "a threshold beside the sparsity": Case(Bricks((4, 4, 4), CUBE, CUBE, sparsity=0.7, cdf_threshold=0.5)),
    "condition bricks": Case(Bricks((6, 2, 4), CUBE, CUBE, num_condition_frames=2, sparsity=0.5)),
    "a pair across the condition's end": Case(Bricks((6, 2, 2), CUBE, CUBE, 2, sparsity=0.0)),
    "larger key bricks": Case(Bricks((4, 4, 4), CUBE, (4, 4, 2), sparsity=0.5)),
    "larger query bricks": Case(Bricks((4, 4, 4), (4, 4, 2), CUBE, sparsity=0.5)),
    "bricks of no power of two": Case(Bricks((3, 6, 4), (3, 3, 2), (1, 3, 4), sparsity=0.5)),
    "bricks larger than a tile": Case(Bricks((4, 8, 6), (4, 8, 3), (4, 4, 6), sparsity=0.5)),
    "released bricks, head dimension 64": Case(Bricks((4, 8, 8), (4, 4, 4), (4, 4, 4), sparsity=0.5), 64),
    "released bricks, head dimension 128": Case(Bricks((4, 8, 4), (4, 4, 4), (4, 4, 4), sparsity=0.5), 128),
    "a head dimension of no power of two": Case(Bricks((4, 4, 4), CUBE, CUBE, sparsity=0.5), 24),
    "a head dimension below a tile": Case(Bricks((4, 4, 4), CUBE, CUBE, sparsity=0.5), 8),
    "scores of 0 and -0": Case(Bricks((2, 2, 66), CUBE, CUBE, sparsity=0.5), 1),
    "half precision": Case(Bricks((4, 4, 8), (4, 4, 2), (4, 4, 2), sparsity=0.5), 64, dtype=torch.float16),
    "one brick": Case(Bricks(CUBE, CUBE, CUBE, sparsity=1.0)),
}


def main(path: str) -> None:
    """Attend and list key bricks on every case, and write what comes out."""
    from model.transformer.block_sparse_triton import attend, pair_up  # only where Triton is

    found = {}
    for name, case in CASES.items():
        found[name] = attend(*case.tokens(), bricks=case.bricks).contiguous()
        found[f"{name}: entries"], found[f"{name}: lengths"] = pair_up(*case.tied(), case.bricks)
    save_file(found, path)


if __name__ == "__main__":
    main(sys.argv[1])
