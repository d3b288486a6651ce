"""The arithmetic of a forward, a job and an exchange: what the counts and the measurements are held against.

A multiply-add is two FLOP. The letters are those of `model`: b batch, n tokens, c width, l text tokens,
p ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from model.transformer.block_sparse_bricks import Bricks
from model.transformer.config import DitConfig
from model.transformer.token_layout import Window

BASE = Window(num_frames=24, height=60, width=104)  # 480×832×93
REFINED = Window(num_frames=48, height=88, width=160)  # 704×1280×186
TEXT_TOKENS = 512


@dataclass(frozen=True)
class Flops:
    """Of one forward of the transformer; `text` is done once for a job and is no part of the total."""

    self_attention: int
    linears: int
    cross_attention: int
    text: int

    @property
    def total(self) -> int:
        """All that is done at every step."""
        return self.self_attention + self.linears + self.cross_attention


def num_tokens(config: DitConfig, window: Window) -> int:
    """Tokens of a forward, n."""
    return window.num_frames * prod(_sides(config, window))


def forward_flops(
    config: DitConfig,
    window: Window,
    num_texts: int = 1,
    num_text_tokens: int = 512,
    frames_in_group: int = 1,
) -> Flops:
    """FLOPs of a forward with dense attention, without condition frames, in closed form.

    Timesteps are embedded once for each group of latent frames; everything else is done for each token.
    """
    n, c, hidden, depth = num_tokens(config, window), config.hidden_size, config.ffn_size, config.depth
    patch, t = prod(config.patch_size), config.adaln_tembed_dim
    of_token = depth * (6 * c * c + 3 * c * hidden) + patch * (config.in_channels + config.out_channels) * c
    of_group = t * (config.frequency_embedding_size + t) + depth * t * 6 * c + t * 2 * c
    text = config.caption_channels * c + c * c + depth * 2 * c * c
    return Flops(
        self_attention=num_texts * depth * 4 * n * n * c,
        linears=num_texts * 2 * (n * of_token + window.num_frames // frames_in_group * of_group),
        cross_attention=num_texts * depth * 4 * n * num_text_tokens * c,
        text=num_texts * num_text_tokens * 2 * text,
    )


def block_sparse_flops(config: DitConfig, window: Window, bricks: Bricks) -> int:
    """FLOPs of self-attention within bricks, where every brick keeps as many as `sparsity` says."""
    pairs = prod(bricks.chunk_q) * prod(bricks.chunk_k)  # of a query and a key, in two bricks
    kept: int = sum(
        (region.queries.stop - region.queries.start) * region.min_kept for region in bricks.regions()
    )
    return config.depth * 4 * kept * pairs * config.hidden_size


def exchanged_bytes(
    num_texts: int, num_tokens: int, width: int, size_bytes: int, ranks: int, ring_degree: int = 1
) -> int:
    """Bytes that a rank sends in the exchanges of one block, among u = p/r ranks: 4·b·n·c·size/p·(u−1)/u."""
    among = ranks // ring_degree
    return 4 * num_texts * num_tokens * width * size_bytes * (among - 1) // (ranks * among)


def passed_bytes(
    num_texts: int, num_tokens: int, width: int, size_bytes: int, ranks: int, ring_degree: int
) -> int:
    """Bytes that a rank sends around a ring of r in one block: 2·b·n·c·size·(r−1)/p."""
    return 2 * num_texts * num_tokens * width * size_bytes * (ring_degree - 1) // ranks


def _sides(config: DitConfig, window: Window) -> tuple[int, int]:
    return window.height // config.patch_size[1], window.width // config.patch_size[2]
