"""The VAE driven a few latent frames at a time gives what diffusers gives for the whole clip."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.traffic import Attention, FusedNorm
from model.parallel.mesh import SINGLE
from model.spec.errors import CheckpointError
from model.spec.geometry import LATENTS_AT_A_TIME, latents_at_a_time
from model.vae import wan
from model.vae.vae import Vae

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module")
def vae(tiny_checkpoint) -> Vae:
    return Vae.load(tiny_checkpoint, CPU, torch.float32)


@pytest.fixture(scope="module")
def theirs(tiny_checkpoint) -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(tiny_checkpoint / "vae").eval()


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_frames", [1, 5, 21, 29])
def test_decoding_as_a_stream_gives_the_whole_clip(vae, theirs, num_frames):
    num_latents = (num_frames - 1) // 4 + 1
    latents = drawn(1, 16, num_latents, 4, 6) * 2 - 1
    chunks = list(vae.decode(latents))
    assert [len(chunk) for chunk in chunks] == [1] + [4] * (num_latents - 1)
    with torch.no_grad():
        whole = theirs.decode(latents * vae._std + vae._mean).sample
    expected = (whole / 2 + 0.5).clamp(0, 1)[0].movedim(0, -1)
    torch.testing.assert_close(torch.cat(chunks), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 5, 8, 21, 30])
def test_encoding_samples_the_posterior_with_the_given_generator(vae, theirs, num_frames):
    frames = drawn(num_frames, 32, 48, 3)
    ours = vae.encode(frames, torch.Generator().manual_seed(5))
    with torch.no_grad():
        posterior = theirs.encode(frames.movedim(-1, 0)[None] * 2 - 1).latent_dist
    expected = (posterior.sample(torch.Generator().manual_seed(5)) - vae._mean) / vae._std
    assert ours.shape[2] == (num_frames - 1) // 4 + 1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_frames_after_the_last_whole_four_are_left_out(vae):
    frames = drawn(8, 32, 48, 3)
    ours, shorter = (vae.encode(x, torch.Generator().manual_seed(5)) for x in (frames, frames[:5]))
    assert torch.equal(ours, shorter)


def test_decoded_frames_lie_between_zero_and_one(vae):
    for chunk in vae.decode(drawn(1, 16, 3, 4, 6) * 20 - 10):
        assert chunk.dtype == torch.float32
        assert chunk.min() >= 0
        assert chunk.max() <= 1


def test_stream_may_be_abandoned_and_another_started(vae):
    latents = drawn(1, 16, 3, 4, 6)
    next(vae.decode(latents))
    other = vae.decode(latents)
    first = next(other)
    assert torch.equal(first, next(vae.decode(latents)))
    assert len(torch.cat([first, *other])) == 9


def live_elements() -> int:
    gc.collect()
    return sum(x.numel() for x in gc.get_objects() if issubclass(type(x), torch.Tensor))


def test_memory_of_decoding_does_not_grow_with_the_clip(vae):
    compared = {1 + LATENTS_AT_A_TIME, 1 + 2 * LATENTS_AT_A_TIME}  # counting is slow: it visits every object
    chunks = vae.decode(drawn(1, 16, 1 + 3 * LATENTS_AT_A_TIME, 4, 6))
    second, third = (live_elements() for number, _ in enumerate(chunks) if number in compared)
    assert second == third


def test_several_latent_frames_take_one_pass(vae, monkeypatch):
    """The first stands alone, then so many at a time: fewer passes, the same frames."""
    latents, passes = drawn(1, 16, 2 + 2 * LATENTS_AT_A_TIME, 4, 6), []

    def counted(decoder, chunk, stream):
        passes.append(len(chunk))
        return wan.decode_chunk(decoder, chunk, stream)

    monkeypatch.setattr("model.vae.vae.decode_chunk", counted)
    whole = torch.cat(list(vae.decode(latents)))
    assert passes == [1, LATENTS_AT_A_TIME, LATENTS_AT_A_TIME, 1]
    monkeypatch.setattr("model.spec.geometry.LATENTS_AT_A_TIME", 1)
    torch.testing.assert_close(torch.cat(list(vae.decode(latents))), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (60, 104, 2),  # 480×832 on one GPU
        (30, 104, 4),  # on each of two
        (88, 160, 1),  # 704×1280 on one GPU
        (44, 160, 2),
        (22, 160, 4),
        (1000, 1000, 1),
    ],
)
def test_chunks_are_as_long_as_the_largest_tensor_allows(rows, columns, expected):
    assert latents_at_a_time(192, rows, columns) == expected


def test_large_frames_are_decoded_and_encoded_in_shorter_chunks_with_the_same_result(vae, monkeypatch):
    latents, frames, passes = drawn(1, 16, 6, 4, 6), drawn(21, 32, 48, 3), []
    noise = drawn(1, 16, 6, 4, 6)
    decoded, encoded = torch.cat(list(vae.decode(latents))), vae.sample(frames.__getitem__, noise)

    def counted(run):
        def run_and_count(network, chunk, stream):
            passes.append(len(chunk))
            return run(network, chunk, stream)

        return run_and_count

    monkeypatch.setattr("model.vae.vae.decode_chunk", counted(wan.decode_chunk))
    monkeypatch.setattr("model.vae.vae.encode_chunk", counted(wan.encode_chunk))
    two_latents = 2 * 4 * 8 * 34 * 50  # with 8 channels
    monkeypatch.setattr("model.spec.geometry.MAX_ELEMENTS", two_latents)
    assert torch.equal(torch.cat(list(vae.decode(latents))), decoded)
    torch.testing.assert_close(vae.sample(frames.__getitem__, noise), encoded, rtol=0, atol=1e-5)
    assert passes == [1, 2, 2, 1, 1, 8, 8, 4]


def test_a_vae_of_another_kind_is_refused(tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint / "vae", tmp_path / "vae")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"is_residual": True}))
    with pytest.raises(CheckpointError, match="is_residual is set"):
        Vae.load(tmp_path, CPU, torch.float32)


def test_bf16_decodes_to_nearly_the_same(tiny_checkpoint, vae):
    half = Vae.load(tiny_checkpoint, CPU, torch.bfloat16)
    latents = drawn(1, 16, 2, 4, 6) * 2 - 1
    whole, rough = (torch.cat(list(x.decode(latents))) for x in (vae, half))
    assert rough.dtype == torch.float32
    assert (whole - rough).abs().mean() < 0.02


def channels_last_vae(checkpoint: Path) -> Vae:
    """A VAE with the memory format and the kernels of CUDA, on the CPU."""
    vae = Vae.load(checkpoint, CPU, torch.float32)
    return Vae(vae._vae, SINGLE, channels_last=True)


def test_channels_last_gives_the_same_clip_and_latents(tiny_checkpoint, vae):
    other = channels_last_vae(tiny_checkpoint)
    latents, frames = drawn(1, 16, 6, 4, 6), drawn(9, 32, 48, 3)
    decoded, encoded = (
        (torch.cat(list(x.decode(latents))), x.encode(frames, torch.Generator().manual_seed(5)))
        for x in (vae, other)
    )
    for ours, expected in zip(encoded, decoded, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


CUDNN_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=CUDNN_FORMATS[x.ndim])


class Convolution(NamedTuple):
    """How a convolution finds its operands, and how many elements were copied since the one before."""

    weight: torch.Size
    input: torch.Size
    is_channels_last: bool
    copied: int

    @property
    def most_copied(self) -> int:
        """Count a copy of the input, and one of two frames for the next chunk or of doubled frames."""
        if self.weight[2:].numel() == 1:
            return 0
        elements = self.input.numel()
        return elements + (2 * elements // self.input[2] if len(self.input) == 5 else elements // 4)


class Convolutions(TorchDispatchMode):
    """Collect the convolutions and the layouts of upsampled pictures.

    The results of convolutions are stored as cuDNN stores them, which takes the format of input or weight.
    """

    COPIES = ("aten::copy_", "aten::clone", "aten::_to_copy")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Convolution] = []
        self.upsampled_channels_last: list[bool] = []
        self._copied = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.name().partition(".")[0]
        if name in self.COPIES:
            self._copied += result.numel()
        elif name == "aten::upsample_nearest2d":
            self.upsampled_channels_last.append(is_channels_last(result))
        elif name == "aten::convolution":
            x, weight = args[:2]
            stored = [is_channels_last(operand) for operand in (x, weight)]
            self.found.append(Convolution(weight.shape, x.shape, all(stored), self._copied))
            self._copied = 0
            if any(stored):
                result = result.contiguous(memory_format=CUDNN_FORMATS[x.ndim])
        return result


def released_vae() -> Vae:
    """Return the VAE of the release on the meta device, with the memory format and the kernels of CUDA."""
    with META:
        vae = AutoencoderKLWan.from_config({}).requires_grad_(False)
    return Vae(vae, SINGLE, channels_last=True)


def convolutions_of(vae: Vae) -> Convolutions:
    """Decode and encode, each in three chunks."""
    latents, frames, noise = drawn(1, 16, 6, 4, 6), drawn(25, 32, 48, 3), drawn(1, 16, 7, 4, 6)
    with torch.no_grad(), FusedNorm(), Attention(), Convolutions() as seen:
        list(vae.decode(latents.to(vae.device)))
        vae.sample(frames.to(vae.device).__getitem__, noise)
    assert len(seen.found) > 100
    return seen


@pytest.fixture(scope="module", params=["tiny", "released"])
def on_cuda(request, tiny_checkpoint) -> tuple[Vae, Convolutions]:
    """A VAE with the memory format of CUDA, and what its convolutions find."""
    vae = released_vae() if request.param == "released" else channels_last_vae(tiny_checkpoint)
    return vae, convolutions_of(vae)


def test_every_convolution_of_the_vae_is_seen(on_cuda):
    vae, seen = on_cuda
    convolutions = [m for m in vae._vae.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    assert {conv.weight.numel() for conv in seen.found} == {m.weight.numel() for m in convolutions}


def test_every_convolution_has_input_and_weight_channels_last(on_cuda):
    _, seen = on_cuda
    assert [conv for conv in seen.found if not conv.is_channels_last] == []


def test_upsampling_keeps_channels_last(on_cuda):
    _, seen = on_cuda
    assert set(seen.upsampled_channels_last) == {True}


def test_nothing_but_the_input_of_a_convolution_is_copied_between_two(tiny_checkpoint):
    _, *others = convolutions_of(channels_last_vae(tiny_checkpoint)).found
    assert [conv for conv in others if conv.copied > conv.most_copied] == []


def test_memory_format_is_that_of_the_device(tiny_checkpoint):
    """On the CPU nothing is stored channels last, however the VAE was made."""
    seen = convolutions_of(Vae.load(tiny_checkpoint, CPU, torch.float32))
    assert not any(conv.is_channels_last for conv in seen.found if conv.weight[2:].numel() > 1)
