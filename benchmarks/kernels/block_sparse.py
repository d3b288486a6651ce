"""Compile the kernels of block-sparse attention as the service starts them."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from model.transformer.block_sparse_tiles import choose_tiles, choose_warps
from model.transformer.block_sparse_triton import _attend_pairs, _list_pairs

HEAD_DIM = 128
BRICK_TOKENS = 64
ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
COLUMNS = 4096  # for the 2,640 key bricks of 704×1280×186


def compile_list(architecture: int) -> Any:  # noqa: ANN401 no types
    """Return Triton's compiled kernel that lists key bricks, for the released sizes."""
    names = _list_pairs.arg_names
    pointers = {"scores": "*fp32"} | dict.fromkeys(("counts", "entries", "lengths"), "*i32")
    source = ASTSource(
        _list_pairs,
        {name: pointers.get(name, "i32") for name in names} | {"COLUMNS": "constexpr"},
        {(names.index("COLUMNS"),): COLUMNS},
        {(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
    )
    options = {"num_warps": choose_warps(COLUMNS)}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def compile_attention(architecture: int, limit_bytes: int, dtype: str) -> Any:  # noqa: ANN401 no types
    """Return Triton's compiled kernel that attends, for a GPU with so much shared memory."""
    tiles = choose_tiles(ELEMENT_BYTES[dtype], HEAD_DIM, limit_bytes)
    names = _attend_pairs.arg_names
    strides = [name for name in names if name.endswith("_strides")]
    pointers = dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}")
    pointers |= dict.fromkeys(("entries", "lengths"), "*i32")
    sizes = {
        "TOKENS_Q": BRICK_TOKENS,
        "TOKENS_K": BRICK_TOKENS,
        "D": HEAD_DIM,
        "TILE_Q": tiles.rows,
        "TILE_K": tiles.rows,
        "TILE_D": HEAD_DIM,
    }
    kinds: dict[str, Any] = pointers | dict.fromkeys(strides, ("i32",) * 3)
    kinds |= dict.fromkeys(sizes, "constexpr") | {"scale": "fp32"}
    aligned: list[tuple[int, ...]] = [(names.index(name),) for name in pointers]
    aligned += [(names.index(name), axis) for name in strides for axis in range(3)]
    source = ASTSource(
        _attend_pairs,
        {name: kinds.get(name, "i32") for name in names},
        {(names.index(name),): size for name, size in sizes.items()},
        {place: [["tt.divisibility", 16]] for place in aligned},
    )
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
