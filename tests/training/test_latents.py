"""The data set that the transformer learns from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.latents import TWINS, Clips, clip, shown, with_shapes
from training.transformer import Selection, pick
from training.world import SHAPES


class Reads:
    """Takes latents and captions as they are."""

    def normalised(self, latents):
        return latents

    def read(self, captions):
        return captions


def family(index):
    return [shown(TWINS * index + turn) for turn in range(TWINS)]


@pytest.fixture
def clips():
    """Sixteen families; a clip's latents are its index."""
    count = 16 * TWINS
    scenes = [shown(index)[0].scene for index in range(count)]
    beginnings = np.array([index for index in range(count) if shown(index)[1] == 0])
    latents = torch.arange(float(count)).view(-1, 1, 1, 1, 1).expand(-1, 16, 5, 8, 12)
    return Clips(latents, scenes, beginnings, np.array([len(scene.things) == 2 for scene in scenes]))


@pytest.mark.parametrize("index", range(12))
def test_twins_are_alike_in_all_but_their_shapes(index):
    twins = family(index)
    plain = [with_shapes(placed.scene, ["ball"] * len(placed.scene.things)) for placed, _ in twins]
    assert plain == [plain[0]] * TWINS
    assert len({(placed.centres, first) for placed, first in twins}) == 1
    assert {placed.scene.things[0].shape for placed, _ in twins} == set(SHAPES)


def test_a_clip_is_the_latents_of_what_is_shown():
    seen = clip(3)
    assert seen.shape == (16, 5, 8, 12)
    assert torch.isfinite(seen).all()


@pytest.mark.parametrize("twins", [2, 4])
def test_twins_are_picked_together(clips, twins):
    batch = pick(clips, Reads(), np.random.default_rng(0), Selection(8, twins, images=True))
    picked = batch.latents[:, 0, 0, 0, 0].int().view(-1, twins)
    assert batch.twins == twins
    assert bool((picked // TWINS == picked[:, :1] // TWINS).all())
    assert all(len(set(row)) == twins for row in picked.tolist())
    assert all(shown(index)[1] == 0 for index in picked.flatten().tolist())


def test_scenes_in_other_shapes_are_else_the_same():
    scene = shown(0)[0].scene
    stars = with_shapes(scene, ["star"] * len(scene.things))
    assert {thing.shape for thing in stars.things} == {"star"}
    assert replace(stars, things=scene.things) == scene
