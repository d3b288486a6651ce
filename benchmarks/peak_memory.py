"""Count the peak of live activations at full size: `python -m benchmarks.peak_memory`.

The real modules run on the meta device, so nothing is computed, and each peak comes with its place in the
code. Weights that stay on the device, keys and values of the text and the workspace of kernels are not
included. Attention, norms and
the convolutions of the VAE count as their kernels for CUDA do; everything else is the code as written,
without compilation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, cast
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel, masking_utils

from benchmarks.formulas import BASE, REFINED, TEXT_TOKENS, num_tokens
from benchmarks.traffic import Attention, FusedNorm, LiveTensors, ranks_on_meta, recorded
from model import text as model_text
from model.parallel.mesh import ContextParallel
from model.pipeline.leader_clip import LeaderClip
from model.spec.geometry import VAE_STRIDE, Size, frames_of_latents
from model.spec.memory import Quantize, TextEncoderPlacement
from model.text import MAX_TOKENS, TextEncoder
from model.transformer import token_layout
from model.transformer.block import QKV
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.quantise import LAYERS, quantise_block
from model.transformer.step_cache import StepCache
from model.transformer.token_layout import Window, build_layout
from model.vae.vae import Vae, WanVae

META = torch.device("meta")
GB = 1e9
DTYPES = (torch.float32, torch.bfloat16)
RANKS = (1, 2, 4)
SHIFT = 12.0  # of the released noise levels
CONDITION_FRAMES = 4  # latent frames of 13 condition frames
UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}


@dataclass(frozen=True)
class Peak:
    """The largest sum of live tensors, its place in the code, and the number of elements of the largest one.

    `units` is the sum in tensors [tokens, width] of a rank, of all texts (0 for the VAE).
    """

    size_bytes: int
    place: str
    largest_elements: int
    units: float = 0.0


@dataclass(frozen=True)
class Case:
    """A forward of the transformer on one of `ranks` ranks that share it."""

    window: Window
    num_texts: int = 1
    sparse: bool = False
    condition_cache: bool = False
    step_cache: bool = False


CASES = {
    "480p": Case(BASE),
    "480p, guided": Case(BASE, num_texts=2),
    "480p, guided, step cache": Case(BASE, num_texts=2, step_cache=True),
    "480p, condition frames": Case(BASE._replace(num_condition=CONDITION_FRAMES), num_texts=2),
    "480p, condition cache": Case(
        BASE._replace(num_frames=BASE.num_frames - CONDITION_FRAMES, first=CONDITION_FRAMES),
        num_texts=2,
        condition_cache=True,
    ),
    "720p, refinement": Case(REFINED, sparse=True),
}


def forward_peak(
    case: Case, dtype: torch.dtype, ranks: int = 1, ring_degree: int = 1, quantize: Quantize = "none"
) -> Peak:
    """Return the peak of a forward of full size. Two blocks have the peak of any number."""
    config, parallel = DitConfig(depth=2), ranks_on_meta(ranks, ring_degree)
    with META:
        dit = Dit(config, dtype).requires_grad_(False)
        for block in dit.blocks:
            quantise_block(block, LAYERS.get(quantize))
        text_kv = dit.text_kv(
            torch.empty(case.num_texts, TEXT_TOKENS, config.caption_channels, dtype=dtype),
            torch.empty(case.num_texts, TEXT_TOKENS, dtype=torch.long),
        )
        latents = torch.empty(case.num_texts, config.in_channels, *case.window[:3])
        timesteps = torch.empty(case.num_texts, case.window.num_frames)
        clean = torch.empty(1, config.in_channels, CONDITION_FRAMES, *case.window[1:3])
    layout = build_layout(config, case.window, parallel, sparse=case.sparse)
    with as_on_cuda():
        condition_kv = None
        if case.condition_cache:
            clean_window = Window(CONDITION_FRAMES, *case.window[1:3])
            condition_kv = dit.condition_kv(clean, build_layout(config, clean_window, parallel, sparse=False))
        step_cache = StepCache(0.1, parallel) if case.step_cache else None
        with LiveTensors() as alive:
            for _step in range(2 if case.step_cache else 1):
                dit(latents, timesteps, layout, text_kv, condition_kv, step_cache)
    elements = case.num_texts * num_tokens(config, case.window) // ranks * config.hidden_size
    return replace(peak_of(alive), units=alive.peak_bytes / (elements * dtype.itemsize))


def attention_peak(case: Case, dtype: torch.dtype, ranks: int, *, slow_links: bool) -> Peak:
    """Return the peak of self-attention in a block, with its inputs and exchanges."""
    config, parallel = DitConfig(), ranks_on_meta(ranks, slow_links=slow_links)
    layout = build_layout(config, case.window, parallel, sparse=case.sparse)
    tokens = (case.num_texts, layout.num_groups, layout.shard_size)

    def project_qkv() -> QKV:
        with META:
            q, k, v = torch.empty(*tokens, 3, config.num_heads, config.head_dim, dtype=dtype).unbind(3)
        return torch.empty_like(q), torch.empty_like(k), v

    with as_on_cuda(), LiveTensors() as alive:
        layout.attend(project_qkv(), None)
    return replace(
        peak_of(alive), units=alive.peak_bytes / (prod(tokens) * config.hidden_size * dtype.itemsize)
    )


def encode_text_peak(placement: TextEncoderPlacement, dtype: torch.dtype) -> Peak:
    """Return the peak of encoding two prompts with UMT5-XXL."""
    text = TextEncoder(cast(Any, _tokens), _full_text_encoder(dtype), META, placement)
    with encoding_on_meta(), LiveTensors() as alive:
        text.encode(["a prompt", "a negative prompt"])
    return peak_of(alive)


def _full_text_encoder(dtype: torch.dtype) -> UMT5EncoderModel:
    with META:
        return nn.Module.to(UMT5EncoderModel(UMT5Config(**UMT5_XXL)), dtype).requires_grad_(False).eval()


@contextmanager
def encoding_on_meta() -> Iterator[None]:
    """Encode prompts on the meta device, which also stands for the host that caches them."""
    # Nothing can be asked of the mask; only that of a prompt with padding is needed.
    needs_mask = patch.object(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *_: False)
    with needs_mask, patch.object(model_text, "CPU", META):
        yield


def _tokens(*_: object, **__: object) -> dict[str, Tensor]:
    """Return a prompt of `MAX_TOKENS` tokens."""
    names = ("input_ids", "attention_mask")
    return {name: torch.empty(1, MAX_TOKENS, dtype=torch.long, device=META) for name in names}


def decode_peak(window: Window, dtype: torch.dtype) -> Peak:
    """Return the peak of decoding the latents of a window on one GPU, with one chunk of frames held."""
    vae = _full_vae(dtype)
    latents = torch.empty(1, vae.latent_channels, *window[:3], device=META)
    with as_on_cuda(), LiveTensors() as alive:
        for _frames in vae.decode(latents):
            pass
    return peak_of(alive)


def encode_peak(window: Window, dtype: torch.dtype) -> Peak:
    """Return the peak of encoding a clip of half the sides and half the frame rate, as refinement does."""
    vae, num_frames = _full_vae(dtype), frames_of_latents(window.num_frames)
    size = Size(window.height * VAE_STRIDE, window.width * VAE_STRIDE)
    sides = (size.height // 2, size.width // 2)
    source = torch.empty(num_frames // 2, *sides, 3, dtype=torch.uint8, device=META)
    clip = LeaderClip.stretched(source, size, num_frames)
    noise = torch.empty(1, vae.latent_channels, *window[:3], device=META)
    with as_on_cuda(), LiveTensors() as alive:
        vae.sample(partial(clip.read, ContextParallel(META)), noise)
    return peak_of(alive)


def _full_vae(dtype: torch.dtype) -> Vae:
    return Vae(cast(WanVae, _full_wan_vae(dtype)), ContextParallel(META), channels_last=True)


def _full_wan_vae(dtype: torch.dtype) -> nn.Module:
    wan_vae: Any = AutoencoderKLWan
    with META:
        return nn.Module.to(wan_vae.from_config({}), dtype).requires_grad_(False)


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Allocate on the meta device what the code for CUDA allocates."""
    with ExitStack() as stack:
        for context in (
            recorded(),
            Attention(),
            FusedNorm(),
            patch.object(token_layout, "block_sparse_attention", _result_alone),
            patch.object(StepCache, "_is_near", lambda *_: False),
        ):
            stack.enter_context(context)
        yield


def _result_alone(q: Tensor, *_: object) -> Tensor:
    """Allocate what the block-sparse kernel allocates, without its small tables."""
    return torch.empty_like(q)


def peak_of(alive: LiveTensors) -> Peak:
    """Return the peak of what was tracked."""
    return Peak(alive.peak_bytes, alive.peak_place, alive.largest_elements)


def table() -> Iterator[str]:
    """Yield the lines of a Markdown table of all peaks."""
    yield "| | dtype | ranks | [tokens, width] | GB | place of the peak |"
    yield "|---|---|---|---|---|---|"
    for name, case in CASES.items():
        for dtype in DTYPES:
            for ranks in RANKS:
                peak = forward_peak(case, dtype, ranks)
                yield _row(name, dtype, ranks, f"{peak.units:.1f}", peak)
    for dtype in DTYPES:
        for name, window in (("480×832×93", BASE), ("704×1280×186", REFINED)):
            yield _row(f"VAE encode {name}", dtype, 1, "", encode_peak(window, dtype))
            yield _row(f"VAE decode {name}", dtype, 1, "", decode_peak(window, dtype))
        for placement in ("device", "offload"):
            yield _row(f"text encoder: {placement}", dtype, 1, "", encode_text_peak(placement, dtype))


def _row(name: str, dtype: torch.dtype, ranks: int, units: str, peak: Peak) -> str:
    kind = str(dtype).removeprefix("torch.")
    return f"| {name} | {kind} | {ranks} | {units} | {peak.size_bytes / GB:.2f} | {peak.place} |"


def main() -> None:
    """Print the table."""
    for line in table():
        print(line, flush=True)


if __name__ == "__main__":
    main()
