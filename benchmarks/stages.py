"""The stages of a job at full size with random weights, for a machine that has no checkpoint.

`benchmarks.gpu_cases` times them. Matrices are N(0, 1/fan-in), scales 1, biases 0: zeros would run too fast.
What the VAE and x264 need is imported only where they run, so that forwards can be timed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks.timing import Work
from model.parallel.mesh import ContextParallel
from model.pipeline import schedule
from model.pipeline.sample import Conditioning, denoise
from model.spec.errors import DeviceError
from model.spec.geometry import VAE_STRIDE, Size
from model.spec.memory import Quantize
from model.transformer.compile import OnFallback, fuse
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.quantise import LAYERS, quantise
from model.transformer.token_layout import Window, build_layout

Built = TypeVar("Built", bound=nn.Module)

DISTILLED_STEPS, SHIFT = 16, 12.0


@dataclass(frozen=True)
class Scale:
    """Sizes of everything: the release's, or a toy's to try the benchmark out on a CPU."""

    dit: DitConfig
    text: UMT5Config
    vae: dict[str, object]
    base: Window
    refined: Window
    text_tokens: int
    dtype: torch.dtype


FULL = Scale(
    dit=DitConfig(),
    text=UMT5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=256384),
    vae={},
    base=Window(24, 60, 104),
    refined=Window(48, 88, 160),
    text_tokens=512,
    dtype=torch.bfloat16,
)
TOY = Scale(
    dit=DitConfig(hidden_size=64, depth=3, num_heads=4, caption_channels=32, adaln_tembed_dim=32),
    text=UMT5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=128),
    vae={"base_dim": 4, "num_res_blocks": 1},
    base=Window(3, 8, 16),
    refined=Window(4, 16, 16),
    text_tokens=16,
    dtype=torch.float32,
)


def random_module(build: Callable[[], Built], device: torch.device) -> Built:
    """Return a module with random weights, created on the device."""
    with torch.device("meta"):
        module = build().requires_grad_(False)
    module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1 and "gamma" not in name:
            parameter.normal_(std=(parameter.numel() / parameter.shape[0]) ** -0.5)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return module.eval()


@dataclass(frozen=True)
class Transformers:
    """One set of weights, run as it stands, with its parts compiled, and so quantised where that works."""

    plain: Dit
    compiled: Dit
    quantised: Mapping[Quantize, Dit]


def transformers(scale: Scale, device: torch.device, on_fallback: OnFallback | None = None) -> Transformers:
    """All of them, with random weights. For `on_fallback` see `fuse`."""
    plain = random_module(lambda: Dit(scale.dit, scale.dtype), device)
    compiled = _of_the_same_weights(plain)
    fuse(compiled, "on", on_fallback)
    quantised: dict[Quantize, Dit] = {}
    for quantize in LAYERS:
        dit = _of_the_same_weights(plain)
        try:
            quantise(dit, quantize)
        except DeviceError as error:
            print(error)
            continue
        fuse(dit, "on", on_fallback)
        quantised[quantize] = dit
    return Transformers(plain, compiled, quantised)


def _of_the_same_weights(dit: Dit) -> Dit:
    with torch.device("meta"):
        other = Dit(dit.config, dit.dtype)
    other.load_state_dict(dit.state_dict(), assign=True)
    return other.requires_grad_(False)


def forward(dit: Dit, scale: Scale, window: Window, num_texts: int, *, sparse: bool = False) -> Work:
    """One forward of random latents."""
    device = dit.x_embedder.proj.weight.device
    layout = build_layout(scale.dit, window, sparse, ContextParallel(device))
    latents = torch.randn(num_texts, scale.dit.in_channels, *window[:3], device=device)
    timesteps = torch.full((num_texts, window.num_frames), 500.0, device=device)
    text = dit.text_kv(*_text(scale, num_texts, device))
    return lambda: dit(latents, timesteps, layout, text)


def clip(dit: Dit, scale: Scale) -> Work:
    """All steps of a distilled clip."""
    device = dit.x_embedder.proj.weight.device
    start = torch.randn(1, scale.dit.in_channels, *scale.base[:3], device=device)
    text, mask = _text(scale, 1, device)
    timesteps, sigmas = (x.to(device) for x in schedule.distilled(DISTILLED_STEPS, SHIFT))
    conditioning = Conditioning(start, start[:, :, :0], text, mask, timesteps, sigmas)
    return lambda: list(denoise(dit, conditioning, ContextParallel(device)))


def text_encoding(scale: Scale, device: torch.device) -> Work:
    """One prompt through the encoder."""
    encoder = random_module(lambda: nn.Module.to(UMT5EncoderModel(scale.text), scale.dtype), device)
    ids = torch.ones(1, scale.text_tokens, dtype=torch.long, device=device)
    return lambda: encoder(input_ids=ids, attention_mask=ids)


def decoding(scale: Scale, device: torch.device) -> Work:
    """Decode the latents of a clip to frames, as the pipeline does it."""
    from diffusers import AutoencoderKLWan  # noqa: PLC0415

    from model.vae.vae import Vae, WanVae  # noqa: PLC0415

    wan: Any = AutoencoderKLWan
    vae = random_module(lambda: nn.Module.to(wan.from_config(scale.vae), scale.dtype), device)
    decoder = Vae(cast(WanVae, vae), ContextParallel(device))
    latents = torch.randn(1, scale.dit.in_channels, *scale.base[:3], device=device)

    def decode() -> None:
        for _frames in decoder.decode(latents):
            pass

    return decode


def video_encoding(scale: Scale, path: Path) -> Work:
    """Encode the frames of a clip, slowly moving noise, to MP4 with x264."""
    from model.io.video import VideoWriter  # noqa: PLC0415

    size = Size(scale.base.height * VAE_STRIDE, scale.base.width * VAE_STRIDE)
    number = 4 * scale.base.num_frames - 3
    coarse = torch.rand(1, 3, number // 8 + 1, 9, 16)
    frames = nn.functional.interpolate(coarse, (number, *size), mode="trilinear")
    frames = (frames[0].movedim(0, -1) * 255).byte()

    def write() -> None:
        with VideoWriter(path, size, fps=15) as writer:
            writer.add(frames)

    return write


def _text(scale: Scale, num_texts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (num_texts, scale.text_tokens)
    hidden = torch.randn(*shape, scale.dit.caption_channels, device=device)
    return hidden, torch.ones(shape, dtype=torch.long, device=device)
