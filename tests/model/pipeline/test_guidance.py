"""Guidance with the projection of the conditional prediction on the unconditional one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.pipeline.guidance import guide


def predictions(seed: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(batch, 4, 3, 2, 2, generator=generator) for _ in range(2))
    return u, v


def written_out(u, v, scale):
    """The same for one sample after another, in fp64."""
    out = []
    for a, b in zip(u.double(), v.double(), strict=True):
        s = (a * b).sum() / ((a * a).sum() + 1e-8)
        out.append(s * a + scale * (b - s * a))
    return torch.stack(out).float()


@given(seed=st.integers(0, 1000), scale=st.floats(1.0, 20.0))
def test_guidance_is_what_its_formula_says(seed, scale):
    u, v = predictions(seed)
    torch.testing.assert_close(guide(u, v, scale), written_out(u, v, scale), rtol=1e-4, atol=1e-4)


def test_scale_one_is_the_conditional_prediction():
    u, v = predictions(0)
    torch.testing.assert_close(guide(u, v, 1.0), v)


def test_equal_predictions_stay_what_they_are():
    u, _ = predictions(1)
    torch.testing.assert_close(guide(u, u, 7.0), u)


def test_each_sample_has_its_own_projection():
    u, v = predictions(2)
    both = guide(u, v, 4.0)
    for i in range(len(u)):
        torch.testing.assert_close(both[i : i + 1], guide(u[i : i + 1], v[i : i + 1], 4.0))


def test_the_size_of_the_unconditional_prediction_does_not_matter():
    u, v = predictions(3)
    torch.testing.assert_close(guide(u * 3, v, 4.0), guide(u, v, 4.0))


def test_an_unconditional_prediction_of_zero_gives_no_nan():
    u, v = predictions(4)
    torch.testing.assert_close(guide(torch.zeros_like(u), v, 4.0), 4 * v)
