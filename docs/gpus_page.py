"""Generate the page of what fits into which GPU: `python -m docs.gpus_page > docs/gpus.md`.

The page is made from the prediction of memory (`model.spec.memory`) for the sizes of the released weights. A
test checks that the committed page is current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks.peak_memory import UMT5_XXL
from model.sizes import prepared_bytes
from model.spec.limits import Limits
from model.spec.memory import (
    GIB,
    CheckpointSizes,
    Quantize,
    Setup,
    available_bytes,
    choose_text_encoder,
    format_bytes,
    host_needed,
    memory_needed,
)
from model.spec.plan import DISTILLED_LORA, REFINEMENT_LORA, Plan
from model.spec.typical import typical_plans
from model.transformer.config import DitConfig, quantised_weights, stays_float32
from model.transformer.dit import Dit

RANKS = (1, 2, 4, 8)
_INTRODUCTION = """\
# Which GPU makes which video

The tables say how many GPUs (1, 2, 4 or 8) must share a video of the released weights so that it fits. A dash
means that it does not fit into 8. Videos have the default size (480×832 pixels) and length (93 frames),
unless their name says otherwise, and quality `exact`: a `balanced` one also needs memory for its
[step cache](performance.md#memory). The precision is that of the large matrices, `LONGCAT_QUANTIZE`: fp8, or
int8 on GPUs that cannot multiply in fp8 (A10, RTX 3090, A100), which takes the same memory. With whole
weights, each GPU of a group has all of the transformer. With `LONGCAT_SHARD_WEIGHTS=on` the GPUs of a group
divide it, and with `LONGCAT_STREAM_WEIGHTS=on` it stays in host memory; these rows are there only where they
make a difference. The last column says from how many GPUs on `LONGCAT_TEXT_ENCODER=auto` leaves the
[text encoder](groups.md#the-text-encoder) on the GPU; with fewer it is offloaded.

The memory of a GPU is what CUDA shows to programs, in whole GiB: an RTX 4090, of which `nvidia-smi` shows
24,564 MiB, has 23 GiB, and an L4 (23,034 MiB) has 22.

The page is calculated, not measured: it comes from the arithmetic by which the service refuses what does not
fit. That leaves 2 GiB of each GPU to CUDA. The tensors of whole jobs fit into the rest, counted on PyTorch's
meta device (`benchmarks/promises.md`). `python -m worker.check` does the same arithmetic for your machine and
weights.

"""

_HOST_MEMORY = """\
## Memory of the host

Weights that a machine keeps in its own memory. Those that [LoRAs](groups.md#loras) change are there once
for all ranks, merged with each LoRA and without, if `LONGCAT_LORA_MEMORY_GIB` leaves room for them. With
`LONGCAT_STREAM_WEIGHTS=on` all blocks are there. If [sharing them](groups.md#streamed-blocks) would take
too much, each rank has a copy of its own, without LoRAs. Each group has its text encoder there, unless it
stays on the GPU.

"""

_DISTILLED = (".attn.proj", "attn.qkv", "q_linear", "kv_linear", "ffn.w1", "ffn.w2", "ffn.w3")
"""How the names of the modules end that the released distilled LoRA changes: 7 of each block."""
_REFINED = (*_DISTILLED, "adaLN_modulation.1", "final_layer.linear")


@dataclass(frozen=True)
class Gpus:
    """A kind of GPU and its memory: that which CUDA shows to programs, in whole GiB, rounded down.

    It is up to 0.9 GiB less than `nvidia-smi` shows, and much less than the name of the GPU says if that
    counts in GB, or if error correction takes a part.
    """

    memory_gib: int
    name: str
    has_fp8: bool = True

    @property
    def quantize(self) -> Quantize:
        """Return how their weights are best quantised."""
        return "fp8" if self.has_fp8 else "int8"

    @property
    def available_bytes(self) -> int:
        """Return the memory of each that weights and tensors may take."""
        found = available_bytes(self.memory_gib * GIB, None)
        assert found is not None
        return found


GPUS = (
    Gpus(22, "A10", has_fp8=False),
    Gpus(22, "L4"),
    Gpus(23, "RTX 3090", has_fp8=False),
    Gpus(23, "RTX 4090"),
    Gpus(31, "RTX 5090"),
    Gpus(39, "A100 40 GB", has_fp8=False),
    Gpus(44, "L40S"),
    Gpus(47, "RTX 6000 Ada"),
    Gpus(79, "H100"),
    Gpus(139, "H200"),
)


def released_sizes() -> CheckpointSizes:
    """Return the sizes of the released weights, from the shapes of the modules."""
    config, wan_vae = DitConfig(), AutoencoderKLWan
    build_vae: Any = wan_vae.from_config
    with torch.device("meta"):
        transformer = {
            name: weight.numel() for name, weight in Dit(config, torch.bfloat16).state_dict().items()
        }
        text_encoder = UMT5EncoderModel(UMT5Config(**UMT5_XXL))
        vae = build_vae({})
    quantised = quantised_weights(config.depth)
    return CheckpointSizes(
        transformer=sum(transformer.values()),
        quantised=sum(size for name, size in transformer.items() if name in quantised),
        float32=sum(size for name, size in transformer.items() if stays_float32(name)),
        blocks=sum(size for name, size in transformer.items() if name.startswith("blocks.")),
        text_encoder=_num_parameters(text_encoder),
        vae=_num_parameters(vae),
        width=config.hidden_size,
        depth=config.depth,
    )


def released_plans() -> dict[str, Plan]:
    """Return typical videos of the released weights by name."""
    return dict(typical_plans(Limits.from_json({}), (DISTILLED_LORA, REFINEMENT_LORA)))


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def document() -> str:
    """Return the page."""
    plans = released_plans()
    head = ("precision", "weights", *plans, "text encoder on the GPU")
    sections = (
        f"## {title}\n\n{_table(head, lines)}\n" for title, lines in _sections(table(released_sizes(), plans))
    )
    return _INTRODUCTION + "".join(sections) + _host_memory()


def _sections(rows: Iterable[Row]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the title and the lines of the table for each size of memory.

    GPUs of the same size share lines, except that they may quantise differently.
    """
    for memory_gib, same_memory in groupby(rows, lambda row: row.gpus.memory_gib):
        names: dict[str, None] = {}  # in place of ordered sets
        precisions: dict[tuple[bool, str, tuple[str, ...]], dict[str, None]] = {}
        for row in same_memory:
            names[row.gpus.name] = None
            precisions.setdefault((row.is_quantised, row.weights, row.numbers), {})[row.precision] = None
        lines = [[", ".join(found), weights, *numbers] for (_, weights, numbers), found in precisions.items()]
        yield f"{memory_gib} GiB: {', '.join(names)}", lines


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *lines))


def _host_memory() -> str:
    """Return the section on the memory of the host."""
    sizes = released_sizes()
    head = (
        "precision",
        "LoRAs, shared",
        "streamed blocks with LoRAs, shared",
        "streamed blocks, copy of a rank",
        "text encoder of a group",
    )
    lines = []
    precisions: dict[str, Quantize] = {"bfloat16": "none", "fp8, int8": "fp8"}
    for precision, quantize in precisions.items():
        whole = Setup(quantize=quantize, text_encoder="offload")
        streamed = replace(whole, stream_weights=True)
        need = host_needed(sizes, streamed, num_ranks=1, num_leaders=1)
        shared = (released_prepared_bytes(setup) for setup in (whole, streamed))
        sizes_of = (*shared, need.block_copies, need.text_encoders)
        lines.append([precision, *map(format_bytes, sizes_of)])
    return _HOST_MEMORY + _table(head, lines)


def released_prepared_bytes(setup: Setup) -> int:
    """Return the host memory that weights merged with the released LoRAs take."""
    config = DitConfig()
    with torch.device("meta"):
        dit = Dit(config, torch.bfloat16)
    shapes = {name: weight.shape for name, weight in dit.state_dict().items()}
    modules = [name for name, module in dit.named_modules() if isinstance(module, nn.Linear)]
    refinement = {name for name in modules if name.endswith(_REFINED)}
    distilled = {name for name in refinement if name.endswith(_DISTILLED)}
    return prepared_bytes(shapes, [distilled, refinement], config.depth, setup)


@dataclass(frozen=True)
class Row:
    """A row of the table: GPUs, and how groups of them run the weights.

    Attributes:
        gpus: the GPUs.
        weights: `whole`, `sharded` or `streamed`.
        setups: how a group of each number of GPUs runs them.
        fewest: for each video the setup with the fewest GPUs into which it fits; None if it fits into none.
    """

    gpus: Gpus
    weights: str
    setups: Sequence[Setup]
    fewest: Mapping[str, Setup | None]

    @property
    def precision(self) -> str:
        """Return how the large matrices are stored."""
        quantize = self.setups[0].quantize
        return "bfloat16" if quantize == "none" else quantize

    @property
    def is_quantised(self) -> bool:
        """Return whether the large matrices have 8 bits."""
        return self.setups[0].quantize != "none"

    @property
    def numbers(self) -> tuple[str, ...]:
        """Return the fewest GPUs for each video, and for a text encoder on the GPU."""
        on_gpu = next((setup for setup in self.setups if setup.text_encoder == "device"), None)
        fewest = (*self.fewest.values(), on_gpu)
        return tuple("–" if setup is None else str(setup.ranks) for setup in fewest)


def table(sizes: CheckpointSizes, plans: Mapping[str, Plan]) -> Iterator[Row]:
    """Yield the rows. Sharded and streamed weights have one only where they make a difference."""
    for gpus in GPUS:
        for quantize in ("none", gpus.quantize):
            whole = [_placed(Setup(ranks, quantize=quantize), sizes, plans, gpus) for ranks in RANKS]
            sharded = [replace(setup, shard_weights=True) for setup in whole if setup.ranks > 1]
            sharded = [_placed(setup, sizes, plans, gpus) for setup in sharded]
            streamed = [_placed(replace(setup, stream_weights=True), sizes, plans, gpus) for setup in whole]
            fewest, fewest_sharded, fewest_streamed = (
                {name: _fewest_ranks(sizes, plan, setups, gpus) for name, plan in plans.items()}
                for setups in (whole, whole[:1] + sharded, streamed)
            )
            yield Row(gpus, "whole", whole, fewest)
            if _ranks(fewest_sharded) != _ranks(fewest):
                yield Row(gpus, "sharded", sharded, fewest_sharded)
            if _ranks(fewest_streamed) != _ranks(fewest):
                yield Row(gpus, "streamed", streamed, fewest_streamed)


def _ranks(fewest: Mapping[str, Setup | None]) -> list[int | None]:
    return [None if setup is None else setup.ranks for setup in fewest.values()]


def _placed(setup: Setup, sizes: CheckpointSizes, plans: Mapping[str, Plan], gpus: Gpus) -> Setup:
    placement = choose_text_encoder("auto", sizes, setup, plans.values(), gpus.available_bytes)
    return replace(setup, text_encoder=placement)


def _fewest_ranks(sizes: CheckpointSizes, plan: Plan, setups: Sequence[Setup], gpus: Gpus) -> Setup | None:
    needs = ((setup, memory_needed(sizes, plan, setup).total) for setup in setups)
    return next((setup for setup, needed in needs if needed <= gpus.available_bytes), None)


def main() -> None:
    """Print the page."""
    sys.stdout.write(document())


if __name__ == "__main__":
    main()
