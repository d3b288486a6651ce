"""Calculate what slices of heads save over slow and fast links: `python -m benchmarks.slices`.

All-to-alls around attention travel one after the other, in the order in which they are asked for, while
attention computes another slice (`model.parallel.ulysses`). Products and attention reach a part of the rate
of the data sheet. Attention computes tiles of queries, each on a part of a streaming multiprocessor (SM); at
the end of each slice, half of the SMs are idle on average while the last tiles compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.formulas import (
    BASE,
    REFINED,
    TEXT_TOKENS,
    block_sparse_flops,
    exchanged_bytes,
    forward_flops,
    num_tokens,
)
from model.parallel.links import SLOW_BYTES_PER_S
from model.parallel.mesh import SINGLE
from model.transformer.config import DitConfig
from model.transformer.token_layout import BLOCK_SPARSE_SLICES, SLICES, Window, build_layout

REACHED = 0.7
"""Part of the rate of the data sheet that is reached."""

TILE = 128
"""Queries of a tile."""

RANKS = (2, 4, 8)
COUNTS = (2, 4, 8)
"""Numbers of slices."""


@dataclass(frozen=True)
class Gpu:
    """A GPU and its link: dense bf16 rate of the data sheet, tiles at a time, and bytes sent in a second."""

    name: str
    flop_per_s: float
    num_sms: int
    tiles_of_sm: int
    bytes_per_s: float

    @property
    def has_slow_link(self) -> bool:
        """Return whether its ranks would exchange heads in slices."""
        return self.bytes_per_s < SLOW_BYTES_PER_S


GPUS = (
    Gpu("RTX 3090", 71e12, 82, 2, 10e9),
    Gpu("L4", 121e12, 58, 2, 15e9),
    Gpu("A10", 125e12, 72, 2, 15e9),
    Gpu("RTX 4090", 165e12, 128, 2, 10e9),
    Gpu("RTX 5090", 210e12, 170, 2, 20e9),
    Gpu("A100, PCIe", 312e12, 108, 1, 20e9),
    Gpu("L40S", 362e12, 142, 2, 20e9),
    Gpu("RTX 6000 Ada", 364e12, 142, 2, 20e9),
    Gpu("A100, NVLink", 312e12, 108, 1, 230e9),
    Gpu("H100, H200, NVLink", 989e12, 132, 1, 350e9),
)
"""The GPUs of docs/gpus.md. Rates of links are assumptions: less than those of PCIe, which GPUs share, and
half of that where they cannot send to each other without the memory of the host."""


@dataclass(frozen=True)
class Attention:
    """One block of a forward: FLOP of attention and of everything else, tokens and bytes of a tensor."""

    attention_flop: float
    other_flop: float
    num_tokens: int
    sparse: bool

    @property
    def num_slices(self) -> int:
        """Return the slices over slow links, if the heads of a rank are enough."""
        return BLOCK_SPARSE_SLICES if self.sparse else SLICES


CONFIG = DitConfig()


def block(window: Window, *, sparse: bool) -> Attention:
    """Return the work of a block of the released model, for one text."""
    flop = forward_flops(CONFIG, window, 1, TEXT_TOKENS)
    attention = float(flop.self_attention)
    if sparse:
        bricks = build_layout(CONFIG, window, SINGLE, sparse=sparse).bricks
        assert bricks
        attention = block_sparse_flops(CONFIG, window, bricks)
    others = flop.linears + flop.cross_attention
    return Attention(
        attention / CONFIG.depth, others / CONFIG.depth, num_tokens(CONFIG, window), sparse=sparse
    )


@dataclass(frozen=True)
class Times:
    """Seconds of a block on one of several ranks.

    Attributes:
        attention_s, others_s: computations, if no SM was ever idle.
        exchanges_s: both exchanges, of which queries, keys and values are three quarters.
        idle_s: what the end of a computation of attention adds.
    """

    attention_s: float
    others_s: float
    exchanges_s: float
    idle_s: float

    def block_s(self, num_slices: int) -> float:
        """Return the time of the block with so many slices."""
        link_free_s = 0.75 * self.exchanges_s  # nothing returns before everything has come
        now_s = 0.0
        for i in range(num_slices):
            arrived_s = 0.75 * self.exchanges_s * (i + 1) / num_slices
            now_s = max(now_s, arrived_s) + self.attention_s / num_slices + self.idle_s
            link_free_s = max(now_s, link_free_s) + 0.25 * self.exchanges_s / num_slices
        return link_free_s + self.others_s

    def gain(self, num_slices: int) -> float:
        """Return the part of the time of a block that slices save."""
        return 1 - self.block_s(num_slices) / self.block_s(1)


def times(gpu: Gpu, work: Attention, ranks: int) -> Times:
    """Return the times of one of the ranks."""
    rate = REACHED * gpu.flop_per_s
    attention_s = work.attention_flop / ranks / rate
    num_tiles = work.num_tokens / TILE * CONFIG.num_heads / ranks
    tile_s = attention_s / num_tiles * gpu.num_sms * gpu.tiles_of_sm
    sent = exchanged_bytes(1, work.num_tokens, CONFIG.hidden_size, 2, ranks)
    return Times(attention_s, work.other_flop / ranks / rate, sent / gpu.bytes_per_s, tile_s / 2)


def table(work: Attention) -> Iterator[str]:
    """Yield the lines of a Markdown table: share of the exchanges, and what each number of slices saves."""
    yield "| GPU | GB/s | " + " | ".join(f"{ranks} GPUs" for ranks in RANKS) + " |"
    yield "|---|---|" + "---|" * len(RANKS)
    for gpu in GPUS:
        cells = [_cell(times(gpu, work, ranks), CONFIG.num_heads // ranks) for ranks in RANKS]
        yield f"| {gpu.name} | {gpu.bytes_per_s / 1e9:.0f} | " + " | ".join(cells) + " |"


def _cell(found: Times, local_heads: int) -> str:
    gains = [str(round(100 * found.gain(count))) for count in COUNTS if local_heads % count == 0]
    return f"{100 * found.exchanges_s / found.block_s(1):.0f} %: " + ", ".join(gains)


def main() -> None:
    """Print both tables."""
    for title, window, sparse in (("480p", BASE, False), ("refinement, 704×1280", REFINED, True)):
        print(f"{title}\n")
        print("\n".join(table(block(window, sparse=sparse))), end="\n\n")


if __name__ == "__main__":
    main()
