"""The written encoder is the plain sum, and follows from the clip alone."""

import pytest
import torch

from training import cells
from training.vae import CONFIG, decoded, new_vae


@pytest.fixture(scope="module")
def vae():
    return new_vae()


@pytest.fixture
def clip():
    return torch.rand(9, 32, 48, 3, generator=torch.Generator().manual_seed(0))


def test_the_encoder_computes_the_same_as_the_plain_sums(vae, clip):
    with torch.no_grad():
        posterior = vae.encode((clip * 2 - 1).permute(3, 0, 1, 2)[None]).latent_dist
    assert torch.allclose(posterior.mode()[0], cells.latents(clip), atol=2e-3)
    assert float(posterior.std.max()) < 0.05


def test_a_cell_of_one_colour_has_only_a_mean():
    z = cells.latents(torch.full((5, 16, 16, 3), 0.75))
    assert torch.allclose(z[:3], torch.tensor(0.5))
    assert torch.allclose(z[3:], torch.tensor(0.0), atol=1e-6)


def test_slopes_have_the_sign_of_what_grows():
    ramp = torch.linspace(0, 1, 16)
    along = cells.latents(ramp[None, None, :, None].expand(5, 16, 16, 3))
    down = cells.latents(ramp[None, :, None, None].expand(5, 16, 16, 3))
    assert bool((along[3:6] > 0).all())
    assert torch.allclose(along[6:9], torch.tensor(0.0), atol=1e-6)
    assert bool((down[6:9] > 0).all())


def test_change_in_time_is_kept_of_later_frames():
    brighter = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 16, 16, 3)
    z = cells.latents(brighter)
    assert bool((z[9:12, 1:] > 0).all())
    assert torch.allclose(z[9:12, 0], torch.tensor(0.0), atol=1e-6)


def test_a_shift_by_whole_cells_shifts_the_latents(clip):
    assert torch.allclose(
        cells.latents(clip.roll((8, 16), (1, 2))), cells.latents(clip).roll((1, 2), (2, 3)), atol=1e-6
    )


def test_the_decoder_begins_by_blending_mean_colours(vae):
    with torch.no_grad():
        frames = decoded(vae, cells.latents(torch.full((5, 64, 96, 3), 0.75))[None])
    assert frames.shape == (1, 3, 5, 64, 96)
    assert torch.allclose(frames[:, :, :, 16:-16, 16:-16], torch.tensor(0.5), atol=0.05)


def test_the_vae_has_the_layout_that_the_server_loads(vae):
    assert vae.config.z_dim == CONFIG["z_dim"] == 16
    assert vae.config.patch_size is None
