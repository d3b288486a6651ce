"""Compile the product with weights in int8 as the service starts it."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from model.transformer.int8_triton import (
    NEIGHBOURS,
    NUM_STAGES,
    NUM_WARPS,
    TILE_IN,
    TILE_OUT,
    TILE_ROWS,
    _multiply,
)


def compile_product(architecture: int) -> Any:  # noqa: ANN401 no types
    """Return Triton's compiled kernel for the released sizes, which divide by 16."""
    names = _multiply.arg_names
    pointers = {"x": "*bf16", "weight": "*i8", "scale": "*fp32", "bias": "*bf16", "out": "*bf16"}
    sizes = {"TILE_ROWS": TILE_ROWS, "TILE_OUT": TILE_OUT, "TILE_IN": TILE_IN, "NEIGHBOURS": NEIGHBOURS}
    kinds = pointers | dict.fromkeys(sizes, "constexpr")
    source = ASTSource(
        _multiply,
        {name: kinds.get(name, "i32") for name in names},
        {(names.index(name),): size for name, size in sizes.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, "width_in", "width_out")},
    )
    options = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
