"""The convolutional encoder computes `encode_clip`."""

import pytest
import torch

from training.analytic_encoder import encode_clip
from training.vae import CONFIG, decode, new_vae


@pytest.fixture(scope="module")
def vae():
    return new_vae()


@pytest.fixture
def clip():
    return torch.rand(9, 32, 48, 3, generator=torch.Generator().manual_seed(0))


def test_convolutions_compute_direct_sums(vae, clip):
    with torch.no_grad():
        posterior = vae.encode((clip * 2 - 1).permute(3, 0, 1, 2)[None]).latent_dist
    assert torch.allclose(posterior.mode()[0], encode_clip(clip), atol=2e-3)
    assert float(posterior.std.max()) < 0.05


def test_uniform_cell_has_only_mean():
    z = encode_clip(torch.full((5, 16, 16, 3), 0.75))
    assert torch.allclose(z[:3], torch.tensor(0.5))
    assert torch.allclose(z[3:], torch.tensor(0.0), atol=1e-6)


def test_slopes_are_positive_where_brightness_increases():
    ramp = torch.linspace(0, 1, 16)
    horizontal = encode_clip(ramp[None, None, :, None].expand(5, 16, 16, 3))
    vertical = encode_clip(ramp[None, :, None, None].expand(5, 16, 16, 3))
    assert bool((horizontal[3:6] > 0).all())
    assert torch.allclose(horizontal[6:9], torch.tensor(0.0), atol=1e-6)
    assert bool((vertical[6:9] > 0).all())


def test_temporal_change_is_encoded_in_later_frames_only():
    brighter = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 16, 16, 3)
    z = encode_clip(brighter)
    assert bool((z[9:12, 1:] > 0).all())
    assert torch.allclose(z[9:12, 0], torch.tensor(0.0), atol=1e-6)


def test_shift_by_whole_cells_shifts_latents(clip):
    shifted = encode_clip(clip.roll((8, 16), (1, 2)))
    assert torch.allclose(shifted, encode_clip(clip).roll((1, 2), (2, 3)), atol=1e-6)


def test_new_decoder_interpolates_mean_colours(vae):
    with torch.no_grad():
        frames = decode(vae, encode_clip(torch.full((5, 64, 96, 3), 0.75))[None])
    assert frames.shape == (1, 3, 5, 64, 96)
    assert torch.allclose(frames[:, :, :, 16:-16, 16:-16], torch.tensor(0.5), atol=0.05)


def test_vae_has_configuration_that_server_loads(vae):
    assert vae.config.z_dim == CONFIG["z_dim"] == 16
    assert vae.config.patch_size is None
