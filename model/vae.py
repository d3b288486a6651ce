"""Pixels to latents and back: the Wan VAE, driven one latent frame at a time with an explicit causal cache.

`model.pipeline` keeps one `Vae`, on the leader alone. Decoding is a stream: memory does not depend on
the length of the clip. The modules are those of diffusers; the loops over frames are ours.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from jaxtyping import Float
from torch import Tensor, nn

from model.checkpoint import Weights, load_module
from model.config import load_json
from model.errors import CheckpointError
from model.geometry import FRAME_STRIDE, latent_frames
from model.vae_on_cpu import CausalConv, swap_parts

MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -30.0, 20.0


@runtime_checkable
class WanVae(Protocol):
    """The parts of diffusers' module that are used here."""

    config: Mapping[str, list[float]]
    device: torch.device
    dtype: torch.dtype
    encoder: nn.Module
    decoder: nn.Module
    quant_conv: nn.Module
    post_quant_conv: nn.Module


class Vae:
    """Encodes clips to normalised latents and decodes latents to clips. Pixels are floats in [0, 1]."""

    def __init__(self, vae: WanVae) -> None:
        self._vae = vae
        mean, std = (torch.tensor(vae.config[name]) for name in ("latents_mean", "latents_std"))
        self._mean, self._std = (x.view(1, -1, 1, 1, 1).to(vae.device) for x in (mean, std))

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device, dtype: torch.dtype) -> "Vae":
        """Load `vae/`. Raises CheckpointError."""
        folder = checkpoint / "vae"
        config = {k: v for k, v in load_json(folder / "config.json").items() if not k.startswith("_")}
        if config.get("patch_size"):
            raise CheckpointError(folder / "config.json", "patch_size is set: this is not the Wan 2.1 VAE")
        weights = Weights(folder, "diffusion_pytorch_model")

        wan: Any = AutoencoderKLWan
        # not by diffusers' own `to`, which warns of modules to keep in fp32: here there are none
        vae = load_module(lambda: nn.Module.to(wan.from_config(config), dtype), weights, device)
        if device.type == "cpu":
            swap_parts(vae)
        return cls(cast(WanVae, vae))

    @property
    def device(self) -> torch.device:
        """Where it is, and what it encodes."""
        return self._mean.device

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self._mean.shape[1]

    def encode(
        self, frames: Float[Tensor, "n height width 3"], generator: torch.Generator
    ) -> Float[Tensor, "1 z f h w"]:
        """Latents in fp32, sampled from the posterior with the CPU generator, normalised.

        Frames after the last whole group of four (the first frame stands alone) are left out.
        """
        pixels = (frames.movedim(-1, 0)[None] * 2 - 1).to(self.device, self._vae.dtype)
        moments = self._vae.quant_conv(torch.cat(list(self._encoded(pixels)), dim=2))
        mean, log_variance = moments.chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        std = torch.exp(0.5 * log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE))
        sample: Tensor = mean + std * noise
        return (sample.float() - self._mean) / self._std

    def decode(self, latents: Float[Tensor, "1 z f h w"]) -> Iterator[Float[Tensor, "n height width 3"]]:
        """Frames of each latent frame as it is decoded: one, then four at a time, in fp32."""
        z = (latents * self._std + self._mean).to(self._vae.dtype)
        cache = _cache(self._vae.decoder)
        for i, frame in enumerate(torch.split(z, 1, dim=2)):
            sample = self._vae.decoder(
                self._vae.post_quant_conv(frame), feat_cache=cache, feat_idx=[0], first_chunk=i == 0
            )
            yield (sample[0].float() / 2 + 0.5).clamp(0, 1).movedim(0, -1)

    def _encoded(self, pixels: Float[Tensor, "1 3 n height width"]) -> Iterator[Float[Tensor, "1 z 1 h w"]]:
        cache = _cache(self._vae.encoder)
        for i in range(latent_frames(pixels.shape[2])):
            first = max(0, 1 + FRAME_STRIDE * (i - 1))
            chunk = pixels[:, :, first : 1 + FRAME_STRIDE * i]
            yield self._vae.encoder(chunk, feat_cache=cache, feat_idx=[0])


def _cache(coder: nn.Module) -> list[Tensor | None]:
    """An empty place for each causal convolution, where it keeps the last frames that it saw."""
    return [None] * sum(isinstance(module, WanCausalConv3d | CausalConv) for module in coder.modules())
