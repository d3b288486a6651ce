"""Encode clips to latents and decode latents to clips with the Wan VAE, a few latent frames at a time.

All ranks of a group encode and decode together, each a shard of the rows of every frame, and all get the
whole result. The memory of both does not depend on the length of the clip, and of large frames fewer are
encoded or decoded at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanDecoder3d, WanEncoder3d, WanResample
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn

from model.io.checkpoint import Weights, load_module
from model.io.json_file import load_json
from model.parallel.mesh import SINGLE, ContextParallel
from model.spec.errors import CheckpointError, reported_as
from model.spec.geometry import (
    FRAME_STRIDE,
    VAE_STRIDE,
    frames_of_latents,
    latent_frames,
    latents_at_a_time,
)
from model.spec.memory import LATENT_CHANNELS
from model.vae.rows import Rows
from model.vae.wan import Frames, Stream, decode_chunk, encode_chunk, pointwise

MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -30.0, 20.0
ReadFrames = Callable[[slice], Float[Tensor, "_ _ _ 3"]]
"""Return some frames of a clip, as floats in [0, 1]. The VAE asks for one piece after the other."""
NOT_A_VAE = "is not that of the Wan 2.1 VAE"
OTHER_VAES = ("patch_size", "is_residual")  # keys of the Wan 2.2 VAE


class _Config(BaseModel):
    """Hold what `vae/config.json` says of the VAE. diffusers does not check the types of these values."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    base_dim: PositiveInt = 96
    z_dim: PositiveInt = LATENT_CHANNELS
    dim_mult: list[PositiveInt] = [1, 2, 4, 4]
    num_res_blocks: PositiveInt = 2
    attn_scales: list[float] = []
    temperal_downsample: list[bool] = [False, True, True]
    dropout: float = 0.0
    latents_mean: list[float] = [0.0] * LATENT_CHANNELS
    latents_std: list[float] = [1.0] * LATENT_CHANNELS


@runtime_checkable
class WanVae(Protocol):
    """The part of diffusers' `AutoencoderKLWan` that is used here."""

    config: Mapping[str, list[float]]
    device: torch.device
    dtype: torch.dtype
    encoder: WanEncoder3d
    decoder: WanDecoder3d
    quant_conv: nn.Module
    post_quant_conv: nn.Module


class Vae:
    """The VAE. Latents are normalised with the statistics of the checkpoint, pixels are floats in [0, 1]."""

    def __init__(self, vae: WanVae, parallel: ContextParallel, *, channels_last: bool | None = None) -> None:
        """Take a loaded VAE.

        With `channels_last`, by default on CUDA alone, weights and pictures are stored channels last.
        """
        self._channels_last = vae.device.type == "cuda" if channels_last is None else channels_last
        if self._channels_last:
            _put_channels_last(cast(nn.Module, vae))
        self._vae = vae
        self._parallel = parallel
        mean, std = (torch.tensor(vae.config[name]) for name in ("latents_mean", "latents_std"))
        self._mean, self._std = (x.view(1, -1, 1, 1, 1).to(vae.device) for x in (mean, std))

    @classmethod
    def load(
        cls, checkpoint: Path, device: torch.device, dtype: torch.dtype, parallel: ContextParallel = SINGLE
    ) -> "Vae":
        """Load the folder `vae/` of a checkpoint. Raises CheckpointError."""
        folder = checkpoint / "vae"
        config = _read_config(folder / "config.json")
        weights = Weights(folder, "diffusion_pytorch_model")

        def build() -> nn.Module:
            wan: Any = AutoencoderKLWan
            with reported_as(folder / "config.json", NOT_A_VAE):
                # diffusers' own `to` warns of modules to keep in fp32, of which the VAE has none
                vae: nn.Module = nn.Module.to(wan.from_config(config), dtype)
            return vae

        return cls(cast(WanVae, load_module(build, weights, device)), parallel)

    def on(self, parallel: ContextParallel) -> "Vae":
        """Return a VAE with the same weights whose frames are divided over other ranks."""
        return Vae(self._vae, parallel, channels_last=self._channels_last)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self._mean.device

    @property
    def latent_channels(self) -> int:
        """Return the number of latent channels, z."""
        return self._mean.shape[1]

    def encode(
        self, frames: Float[Tensor, "frames height width 3"], generator: torch.Generator
    ) -> Float[Tensor, "1 z f h w"]:
        """Return normalised latents in fp32, sampled from the posterior with a CPU generator."""
        num_frames, height, width = frames.shape[:3]
        sides = (height // VAE_STRIDE, width // VAE_STRIDE)
        shape = (1, self.latent_channels, latent_frames(num_frames), *sides)
        return self.sample(frames.__getitem__, torch.randn(shape, generator=generator))

    def sample(self, read: ReadFrames, noise: Float[Tensor, "1 z f h w"]) -> Float[Tensor, "1 z f h w"]:
        """Return normalised latents in fp32: the posterior's mean plus its standard deviation times `noise`.

        The first frame is encoded alone, later ones four at a time. Frames after the last whole group of
        four are not read.
        """
        mean, log_variance = self._moments(read, *noise.shape[2:]).chunk(2, dim=1)
        std = torch.exp(0.5 * log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE))
        sample: Tensor = mean + std * noise.to(mean)
        return (sample.float() - self._mean) / self._std

    def decode(self, latents: Float[Tensor, "1 z f h w"]) -> Iterator[Float[Tensor, "frames height width 3"]]:
        """Yield the frames of each latent frame in fp32: one of the first, four of each later one."""
        rows = Rows(self._parallel, latents.shape[3], self._channels_last)
        z = (latents * self._std + self._mean).to(self._vae.dtype)[0].transpose(0, 1)
        z = rows.shard(z).contiguous(memory_format=rows.memory_format)
        stream, z = Stream(rows), pointwise(self._vae.post_quant_conv, z)
        for chunk in _chunks(len(z), self._latents_at_a_time(rows, z.shape[3])):
            pixels = rows.gather(
                (decode_chunk(self._vae.decoder, z[chunk], stream).float() / 2 + 0.5).clamp(0, 1)
            )
            yield from torch.split(pixels.movedim(1, -1), FRAME_STRIDE)

    def _moments(
        self, read: ReadFrames, num_latents: int, height: int, width: int
    ) -> Float[Tensor, "1 moments f h w"]:
        """Return means and log variances of latents of this size, in the dtype of the VAE."""
        rows = Rows(self._parallel, height, self._channels_last)
        stream, at_a_time = Stream(rows), FRAME_STRIDE * self._latents_at_a_time(rows, width)
        moments = [
            encode_chunk(self._vae.encoder, self._pixels(rows, read(chunk)), stream)
            for chunk in _chunks(frames_of_latents(num_latents), at_a_time)
        ]
        gathered = rows.gather(pointwise(self._vae.quant_conv, torch.cat(moments)))
        return gathered.transpose(0, 1)[None]

    def _pixels(self, rows: Rows, frames: Float[Tensor, "frames height width 3"]) -> Frames:
        """Return this rank's rows of frames, as the encoder takes them."""
        return (rows.shard(frames.movedim(-1, 1)).to(self.device) * 2 - 1).to(self._vae.dtype)

    def _latents_at_a_time(self, rows: Rows, columns: int) -> int:
        """Return how many latent frames are a chunk, given this rank's rows."""
        upsamplers = [layer for layer in self._vae.decoder.modules() if isinstance(layer, WanResample)]
        conv = cast(nn.Conv2d, upsamplers[-1].resample[1])
        return latents_at_a_time(conv.in_channels, rows.length(), columns)


def _chunks(num_frames: int, length: int) -> Iterator[slice]:
    """Yield the first frame alone, as the Wan VAE requires, then `length` frames at a time."""
    yield slice(0, 1)
    for start in range(1, num_frames, length):
        yield slice(start, min(start + length, num_frames))


def _put_channels_last(module: nn.Module) -> None:
    """Store the weights of convolutions channels last, where a GPU convolves fastest."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.contiguous(memory_format=layouts[parameter.ndim])


def _read_config(path: Path) -> dict[str, Any]:
    """Read `vae/config.json`, and check the types of its values. Raises CheckpointError."""
    config = {key: value for key, value in load_json(path).items() if not key.startswith("_")}
    for key in OTHER_VAES:
        if config.get(key):
            raise CheckpointError(path, f"{key} is set: this is not the Wan 2.1 VAE")
    with reported_as(path, NOT_A_VAE):
        read = _Config.model_validate(config)
    for key, numbers in (("latents_mean", read.latents_mean), ("latents_std", read.latents_std)):
        if len(numbers) != read.z_dim:
            raise CheckpointError(path, f"{key} has {len(numbers)} numbers, not z_dim: {read.z_dim}")
    return config
