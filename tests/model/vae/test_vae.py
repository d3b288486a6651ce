"""The VAE driven a few latent frames at a time gives what diffusers gives for the whole clip."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.overrides import TorchFunctionMode

from model.parallel.mesh import SINGLE
from model.spec.errors import CheckpointError
from model.spec.geometry import LATENTS_AT_A_TIME, latents_at_a_time
from model.vae import wan
from model.vae.vae import Vae

CPU = torch.device("cpu")


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


def test_a_stream_may_be_left_and_begun_again(vae):
    latents = drawn(1, 16, 3, 4, 6)
    next(vae.decode(latents))
    other = vae.decode(latents)
    first = next(other)
    assert torch.equal(first, next(vae.decode(latents)))
    assert len(torch.cat([first, *other])) == 9


def live_elements() -> int:
    gc.collect()
    return sum(x.numel() for x in gc.get_objects() if issubclass(type(x), torch.Tensor))


def test_what_decoding_keeps_does_not_grow_with_the_clip(vae):
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
        (60, 104, 4),  # 480×832
        (88, 160, 2),  # 704×1280 on one GPU
        (44, 160, 4),  # on each of two
        (135, 240, 1),  # 1080×1920
        (1000, 1000, 1),
    ],
)
def test_chunks_are_as_long_as_the_largest_tensor_allows(rows, columns, expected):
    assert latents_at_a_time(192, rows, columns) == expected


def test_large_frames_are_decoded_in_shorter_chunks_with_the_same_result(vae, monkeypatch):
    latents, passes = drawn(1, 16, 6, 4, 6), []
    decoded = torch.cat(list(vae.decode(latents)))

    def counted(decoder, chunk, stream):
        passes.append(len(chunk))
        return wan.decode_chunk(decoder, chunk, stream)

    monkeypatch.setattr("model.vae.vae.decode_chunk", counted)
    monkeypatch.setattr(
        "model.spec.geometry.MAX_ELEMENTS", 2 * 4 * 8 * 34 * 50
    )  # two latent frames of 8 channels
    assert torch.equal(torch.cat(list(vae.decode(latents))), decoded)
    assert passes == [1, 2, 2, 1]


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


class Convolutions(TorchFunctionMode):
    """Collect the memory formats of the input and the weight of each convolution of more than one place."""

    FORMATS: ClassVar = {torch.conv2d: torch.channels_last, torch.conv3d: torch.channels_last_3d}

    def __init__(self) -> None:
        super().__init__()
        self.stored_channels_last: list[tuple[bool, bool]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.FORMATS and args[1][0, 0].numel() > 1:
            x, weight = args[:2]
            # The rows and columns of x may be a part of a larger picture, which strides show and
            # `is_contiguous` does not; a kernel of 3×1×1 places fits both formats.
            by_place = x.stride(1) == 1 and x.stride(-1) == x.shape[1]
            self.stored_channels_last.append(
                (by_place, weight.is_contiguous(memory_format=self.FORMATS[func]))
            )
        return func(*args, **(kwargs or {}))


def test_every_convolution_reads_and_has_channels_last(tiny_checkpoint):
    vae = channels_last_vae(tiny_checkpoint)
    for work in (
        lambda: list(vae.decode(drawn(1, 16, 6, 4, 6))),
        lambda: vae.encode(drawn(9, 32, 48, 3), torch.Generator().manual_seed(5)),
    ):
        with Convolutions() as seen:
            work()
        assert len(seen.stored_channels_last) > 30
        assert set(seen.stored_channels_last) == {(True, True)}


def test_memory_format_is_that_of_the_device(tiny_checkpoint):
    """On the CPU nothing is stored channels last, however the VAE was made."""
    with Convolutions() as seen:
        list(Vae.load(tiny_checkpoint, CPU, torch.float32).decode(drawn(1, 16, 2, 4, 6)))
    assert (False, False) in seen.stored_channels_last
