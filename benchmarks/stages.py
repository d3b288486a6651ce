"""The stages of a job at full size with random weights, for a machine that has no checkpoint.

`benchmarks.gpu_cases` times them. Matrices are N(0, 1/fan-in), scales 1, biases 0: zeros would run too fast.
What the VAE and x264 need is imported only where they run, so that forwards can be timed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks.timing import Work
from model.parallel.mesh import ContextParallel
from model.spec.errors import DeviceError
from model.spec.geometry import VAE_STRIDE, Size, frames_of_latents
from model.spec.memory import RESERVE_BYTES, CheckpointSizes, Quantize, Setup, forward_bytes
from model.spec.stages import StageShape
from model.transformer.block import Block
from model.transformer.compile import OnFallback, fuse
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.flat_blocks import FlatBlocks
from model.transformer.loading import BLOCKS
from model.transformer.quantise import LAYERS, quantise, quantise_block
from model.transformer.quantised_linear import QuantisedLinear
from model.transformer.streamed_blocks import StreamedBlocks
from model.transformer.token_layout import Window, build_layout

Built = TypeVar("Built", bound=nn.Module)


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


def scale_of(device_type: str) -> Scale:
    """Return full size for a GPU, a toy's for a CPU."""
    return FULL if device_type == "cuda" else TOY


def blocks_that_fit(
    scale: Scale, window: Window, num_texts: int, quantised: Collection[Quantize], memory_bytes: int
) -> int:
    """Return with how many of the transformer's blocks a forward fits the memory, at least one.

    Beside the weights as they are, the memory has those that are quantised.
    """
    with torch.device("meta"):
        dit = Dit(replace(scale.dit, depth=1), scale.dtype)
    block_bytes = _num_bytes(dit.blocks[0])
    outside_bytes = _num_bytes(dit) - block_bytes
    for quantize in quantised:
        with torch.device("meta"):
            block = Block(scale.dit, scale.dtype)
        quantise_block(block, LAYERS[quantize])
        block_bytes += sum(_num_bytes(each) for each in block.modules() if isinstance(each, QuantisedLinear))
    shape = StageShape(
        window.num_frames, window.height * VAE_STRIDE, window.width * VAE_STRIDE, num_texts=num_texts
    )
    sizes = CheckpointSizes(
        transformer=0, quantised=0, text_encoder=0, vae=0, width=scale.dit.hidden_size, depth=scale.dit.depth
    )
    working_bytes = max(
        forward_bytes(sizes, shape, Setup(element_bytes=scale.dtype.itemsize, quantize=quantize))
        for quantize in ("none", *quantised)
    )
    left = memory_bytes - RESERVE_BYTES - outside_bytes - working_bytes
    return max(1, min(scale.dit.depth, left // block_bytes))


def _num_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


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
    """One set of weights, run as it stands, with its parts compiled, and so quantised.

    `refused` says which formats the device cannot multiply, and why.
    """

    plain: Dit
    compiled: Dit
    quantised: Mapping[Quantize, Dit]
    refused: Mapping[Quantize, str]


def transformers(
    scale: Scale,
    device: torch.device,
    quantised: Collection[Quantize] = (),
    on_fallback: OnFallback | None = None,
) -> Transformers:
    """Return transformers with random weights. For `on_fallback` see `fuse`."""
    plain = random_module(lambda: Dit(scale.dit, scale.dtype), device)
    compiled = _of_the_same_weights(plain)
    fuse(compiled, "on", on_fallback)
    made: dict[Quantize, Dit] = {}
    refused: dict[Quantize, str] = {}
    for quantize in quantised:
        dit = _of_the_same_weights(plain)
        try:
            quantise(dit, quantize)
        except DeviceError as error:
            refused[quantize] = str(error)
            continue
        fuse(dit, "on", on_fallback)
        made[quantize] = dit
    return Transformers(plain, compiled, made, refused)


def _of_the_same_weights(dit: Dit) -> Dit:
    with torch.device("meta"):
        other = Dit(dit.config, dit.dtype)
    other.load_state_dict(dit.state_dict(), assign=True)
    return other.requires_grad_(False)


def with_block_weights(dit: Dit, keep: Callable[[Iterable[Block]], FlatBlocks[Block]]) -> Dit:
    """Return a transformer with the same weights, those of whose blocks are kept elsewhere.

    Args:
        dit: a transformer that has all weights on its device.
        keep: returns where those of the blocks are kept, given the blocks.
    """
    with torch.device("meta"):
        other = Dit(dit.config, dit.dtype).requires_grad_(False)
    tensors = dit.state_dict()
    outside = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{BLOCKS}.")}
    other.load_state_dict(outside, assign=True, strict=False)
    other.block_weights = kept = keep(other.blocks)
    for name in tensors.keys() - outside.keys():
        kept.store(name, tensors[name])
    return other.requires_grad_(False)


def in_host_memory(blocks: Iterable[Block], device: torch.device) -> StreamedBlocks[Block]:
    """Return blocks whose weights are in page-locked memory of the host."""
    streamed = StreamedBlocks(BLOCKS, blocks, device)
    streamed.keep_copies()
    return streamed


def forward(
    dit: Dit,
    scale: Scale,
    window: Window,
    num_texts: int,
    *,
    sparse: bool = False,
    parallel: ContextParallel | None = None,
) -> Callable[[], Tensor]:
    """One forward of random latents, the same ones each time. All ranks of `parallel` run it together."""
    device = dit.x_embedder.proj.weight.device
    layout = build_layout(scale.dit, window, parallel or ContextParallel(device), sparse=sparse)
    torch.manual_seed(0)
    latents = torch.randn(num_texts, scale.dit.in_channels, *window[:3], device=device)
    timesteps = torch.full((num_texts, window.num_frames), 500.0, device=device)
    text = dit.text_kv(*_text(scale, num_texts, device))
    return lambda: dit(latents, timesteps, layout, text)


def text_encoding(scale: Scale, device: torch.device) -> Work:
    """Run one prompt through the encoder."""
    encoder = random_module(lambda: nn.Module.to(UMT5EncoderModel(scale.text), scale.dtype), device)
    ids = torch.ones(1, scale.text_tokens, dtype=torch.long, device=device)
    return lambda: encoder(input_ids=ids, attention_mask=ids)


def vae_works(scale: Scale, device: torch.device) -> dict[str, Work]:
    """Encode the frames of a clip to latents, and decode latents to frames, as the pipeline does it."""
    from diffusers import AutoencoderKLWan  # noqa: PLC0415

    from model.vae.vae import Vae, WanVae  # noqa: PLC0415

    wan: Any = AutoencoderKLWan
    vae = random_module(lambda: nn.Module.to(wan.from_config(scale.vae), scale.dtype), device)
    both = Vae(cast(WanVae, vae), ContextParallel(device))
    latents = torch.randn(1, scale.dit.in_channels, *scale.base[:3], device=device)
    frames = torch.rand(_num_frames(scale), *_size(scale), 3)
    generator = torch.Generator()

    def decode() -> None:
        for _frames in both.decode(latents):
            pass

    return {"VAE encode": lambda: both.encode(frames, generator), "VAE decode": decode}


def video_encoding(scale: Scale, path: Path) -> Work:
    """Encode the frames of a clip, slowly moving noise, to MP4 with x264."""
    from model.io.video import VideoWriter  # noqa: PLC0415

    size, number = _size(scale), _num_frames(scale)
    coarse = torch.rand(1, 3, number // 8 + 1, 9, 16)
    frames = nn.functional.interpolate(coarse, (number, *size), mode="trilinear")
    frames = (frames[0].movedim(0, -1) * 255).byte()

    def write() -> None:
        with VideoWriter(path, size, fps=15) as writer:
            writer.add(frames)

    return write


def _size(scale: Scale) -> Size:
    return Size(scale.base.height * VAE_STRIDE, scale.base.width * VAE_STRIDE)


def _num_frames(scale: Scale) -> int:
    return frames_of_latents(scale.base.num_frames)


def _text(scale: Scale, num_texts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (num_texts, scale.text_tokens)
    hidden = torch.randn(*shape, scale.dit.caption_channels, device=device)
    return hidden, torch.ones(shape, dtype=torch.long, device=device)
