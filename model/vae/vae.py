"""Pixels to latents and back: the Wan VAE, a few latent frames at a time with an explicit causal cache.

`model.pipeline` keeps one `Vae` on every device of a group; all of them encode and decode together, each its
rows of every frame (`model.wan`), and all have the whole result. Decoding is a stream: memory does not
depend on the length of the clip.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanDecoder3d, WanEncoder3d
from jaxtyping import Float
from torch import Tensor, nn

from model.io.checkpoint import Weights, load_module
from model.parallel.mesh import ALONE, ContextParallel
from model.spec.errors import CheckpointError
from model.spec.geometry import FRAME_STRIDE, VAE_STRIDE, frames_of_latents, latent_frames
from model.transformer.config import load_json
from model.vae.rows import Rows
from model.vae.wan import Frames, Stream, decoded, encoded, pointwise

LATENTS_AT_A_TIME = 4
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -30.0, 20.0
OTHER_VAES = ("patch_size", "is_residual")  # keys of Wan 2.2's


@runtime_checkable
class WanVae(Protocol):
    """The parts of diffusers' module that are used here."""

    config: Mapping[str, list[float]]
    device: torch.device
    dtype: torch.dtype
    encoder: WanEncoder3d
    decoder: WanDecoder3d
    quant_conv: nn.Module
    post_quant_conv: nn.Module


class Vae:
    """Encodes clips to normalised latents and decodes latents to clips. Pixels are floats in [0, 1]."""

    def __init__(self, vae: WanVae, parallel: ContextParallel) -> None:
        self._vae = vae
        self._parallel = parallel
        mean, std = (torch.tensor(vae.config[name]) for name in ("latents_mean", "latents_std"))
        self._mean, self._std = (x.view(1, -1, 1, 1, 1).to(vae.device) for x in (mean, std))

    @classmethod
    def load(
        cls, checkpoint: Path, device: torch.device, dtype: torch.dtype, parallel: ContextParallel = ALONE
    ) -> "Vae":
        """Load `vae/`. Raises CheckpointError."""
        folder = checkpoint / "vae"
        config = {k: v for k, v in load_json(folder / "config.json").items() if not k.startswith("_")}
        for key in OTHER_VAES:
            if config.get(key):
                raise CheckpointError(folder / "config.json", f"{key} is set: this is not the Wan 2.1 VAE")
        weights = Weights(folder, "diffusion_pytorch_model")

        wan: Any = AutoencoderKLWan
        # not by diffusers' own `to`, which warns of modules to keep in fp32: here there are none
        vae = load_module(lambda: nn.Module.to(wan.from_config(config), dtype), weights, device)
        if device.type == "cuda":
            put_channels_last(vae)
        return cls(cast(WanVae, vae), parallel)

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
        """Latents in fp32, sampled from the posterior with the CPU generator, normalised."""
        num_frames, height, width = frames.shape[:3]
        sides = (height // VAE_STRIDE, width // VAE_STRIDE)
        shape = (1, self.latent_channels, latent_frames(num_frames), *sides)
        return self.sample(frames, torch.randn(shape, generator=generator))

    def sample(
        self, frames: Float[Tensor, "n height width 3"], noise: Float[Tensor, "1 z f h w"]
    ) -> Float[Tensor, "1 z f h w"]:
        """Latents in fp32, normalised: the posterior's mean, and its deviation times the noise.

        Frames after the last whole group of four (the first frame stands alone) are left out.
        """
        mean, log_variance = self._moments(frames).chunk(2, dim=1)
        std = torch.exp(0.5 * log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE))
        sample: Tensor = mean + std * noise.to(mean)
        return (sample.float() - self._mean) / self._std

    def decode(self, latents: Float[Tensor, "1 z f h w"]) -> Iterator[Float[Tensor, "n height width 3"]]:
        """Frames of each latent frame as they are decoded: one, then four at a time, in fp32."""
        rows = Rows(self._parallel, latents.shape[3])
        z = (latents * self._std + self._mean).to(self._vae.dtype)[0].transpose(0, 1)
        stream, z = Stream(rows), pointwise(self._vae.post_quant_conv, rows.share(z))
        for chunk in _chunks(z, LATENTS_AT_A_TIME):
            pixels = rows.gather((decoded(self._vae.decoder, chunk, stream).float() / 2 + 0.5).clamp(0, 1))
            yield from torch.split(pixels.movedim(1, -1), FRAME_STRIDE)

    def _moments(self, frames: Float[Tensor, "n height width 3"]) -> Float[Tensor, "1 moments f h w"]:
        """Means and log variances of the posterior, in the dtype of the VAE."""
        rows = Rows(self._parallel, frames.shape[1] // VAE_STRIDE)
        stream, found = Stream(rows), []
        whole = frames[: frames_of_latents(latent_frames(len(frames)))].movedim(-1, 1)
        for chunk in _chunks(whole, FRAME_STRIDE * LATENTS_AT_A_TIME):
            pixels = rows.share(chunk).to(self.device) * 2 - 1
            found.append(encoded(self._vae.encoder, pixels.to(self._vae.dtype), stream))
        moments = rows.gather(pointwise(self._vae.quant_conv, torch.cat(found)))
        return moments.transpose(0, 1)[None]


def _chunks(frames: Frames, length: int) -> Iterator[Frames]:
    """The first alone, as the Wan VAE wants it, then so many at a time."""
    yield frames[:1]
    if len(frames) > 1:
        yield from torch.split(frames[1:], length)


def put_channels_last(module: nn.Module) -> None:
    """Weights in the order in which a GPU convolves fastest."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.contiguous(memory_format=layouts[parameter.ndim])
