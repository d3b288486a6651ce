"""The VAE driven frame by frame gives what diffusers gives for the whole clip."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm

from model.vae import Vae

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(tiny_checkpoint) -> Vae:
    return Vae.load(tiny_checkpoint, CPU, torch.float32)


@pytest.fixture(scope="module")
def theirs(tiny_checkpoint) -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(tiny_checkpoint / "vae").eval()


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_decoding_as_a_stream_gives_the_whole_clip(vae, theirs, num_frames):
    num_latents = (num_frames - 1) // 4 + 1
    latents = drawn(1, 16, num_latents, 4, 6) * 2 - 1
    chunks = list(vae.decode(latents))
    assert [len(chunk) for chunk in chunks] == [1] + [4] * (num_latents - 1)
    with torch.no_grad():
        whole = theirs.decode(latents * vae._std + vae._mean).sample
    expected = (whole / 2 + 0.5).clamp(0, 1)[0].movedim(0, -1)
    torch.testing.assert_close(torch.cat(chunks), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 5, 8, 9, 12])
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
    kept = [live_elements() for _ in vae.decode(drawn(1, 16, 7, 4, 6))]
    assert max(kept[3:]) == min(kept[3:])


def test_bf16_decodes_to_nearly_the_same(tiny_checkpoint, vae):
    half = Vae.load(tiny_checkpoint, CPU, torch.bfloat16)
    latents = drawn(1, 16, 2, 4, 6) * 2 - 1
    whole, rough = (torch.cat(list(x.decode(latents))) for x in (vae, half))
    assert rough.dtype == torch.float32
    assert (whole - rough).abs().mean() < 0.02


def test_the_parts_for_a_cpu_compute_what_they_replace(theirs):
    from model.vae_on_cpu import swap_parts

    swapped = copy.deepcopy(theirs)
    swap_parts(swapped)
    assert not any(isinstance(part, WanCausalConv3d | WanRMS_norm) for part in swapped.modules())
    x = drawn(1, 3, 5, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            swapped.encode(x).latent_dist.mean, theirs.encode(x).latent_dist.mean, rtol=0, atol=1e-5
        )
