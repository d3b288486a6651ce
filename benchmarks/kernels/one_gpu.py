"""Compile everything for one GPU, in a process of its own: `python -m benchmarks.kernels.one_gpu 90`.

Print one row as JSON for each shape and precision of a block, and for the kernels of block-sparse attention
and of products with weights in int8.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict

import torch

from benchmarks.kernels.block_sparse import ELEMENT_BYTES, compile_attention, compile_list
from benchmarks.kernels.cases import SHAPES, Shape, fake_tensors, parts
from benchmarks.kernels.gpus import GPUS, Gpu
from benchmarks.kernels.inductor import schedule
from benchmarks.kernels.int8 import compile_product
from benchmarks.kernels.machine_code import Needs, compile_generated, needs
from benchmarks.kernels.pretend_gpu import pretend
from model.spec.memory import Quantize

Row = dict[str, object]


def rows(gpu: Gpu) -> Iterator[tuple[str, Row]]:
    """Yield the name and the contents of each row."""
    yield "block-sparse list of key bricks", _summary([needs(compile_list(gpu.architecture))])
    for dtype in ELEMENT_BYTES:
        kernel = compile_attention(gpu.architecture, gpu.shared_bytes, dtype)
        yield f"block-sparse attention, {dtype}", _summary([needs(kernel)])
    yield "int8 product", _summary([needs(compile_product(gpu.architecture))])
    formats: tuple[Quantize, ...] = ("none", "fp8", "int8") if gpu.fp8 else ("none", "int8")
    for quantize in formats:
        for name, shape in SHAPES.items():
            yield f"{name}, {'bf16' if quantize == 'none' else quantize}", block(shape, quantize)


def block(shape: Shape, quantize: Quantize) -> Row:
    """Compile the parts of a block, and return what all of them need."""
    products, passes, found = 0, [], []
    with fake_tensors(), torch.no_grad():
        schedules = [(part, schedule(part.call, part.arguments)) for part in parts(shape, quantize)]
    for part, scheduled in schedules:
        products += scheduled.num_products
        passes += [size / part.pass_bytes for size in scheduled.moved_bytes]
        for name, code in scheduled.code.items():
            found.append(min(compile_generated(name, code), key=lambda one: one.spilled_bytes))
    counts = {"products": products, "kernels": len(passes), "passes": round(sum(passes), 1)}
    return counts | _summary(found)


def _summary(found: list[Needs]) -> Row:
    """Return the largest need of several kernels, each in the configuration that spills least."""
    return {field: max(getattr(one, field) for one in found) for field in asdict(found[0])}


def main(architecture: str) -> None:
    """Print the rows of one GPU."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # Inductor's word on each stop before a kernel is run
    gpu = GPUS[int(architecture)]
    pretend(gpu)
    for name, row in rows(gpu):
        print(json.dumps({"name": name, **row}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
