"""The data set that the transformer learns from."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.latents import TWINS, Clips, clip, do_alike, shown
from training.transformer import Selection, pick
from training.world import SHAPES, motions_of


class Reads:
    """Takes latents and captions as they are."""

    def normalised(self, latents):
        return latents

    def read(self, captions):
        return captions


def family(index):
    return [shown(TWINS * index + turn) for turn in range(TWINS)]


def like_a_still_red_ball(scene):
    plain = {"shape": "ball", "colour": "red", "motion": "still", "speed": None}
    return replace(scene, things=tuple(replace(thing, **plain) for thing in scene.things))


def things_of(index):
    """For each thing of a family, itself in all twins."""
    return list(zip(*(placed.scene.things for placed, _ in family(index)), strict=True))


@pytest.fixture
def clips():
    """Sixteen families; a clip's latents are its index."""
    count = 16 * TWINS
    return Clips.of(torch.arange(float(count)).view(-1, 1, 1, 1, 1).expand(-1, 16, 5, 8, 12))


@pytest.mark.parametrize("index", range(12))
def test_twins_are_alike_in_all_but_shapes_colours_and_motions(index):
    seen = family(index)
    plain = [like_a_still_red_ball(placed.scene) for placed, _ in seen]
    assert plain == [plain[0]] * TWINS
    assert len({first for _, first in seen}) == 1


@pytest.mark.parametrize("index", range(12))
def test_a_thing_has_another_shape_in_each_twin(index):
    for things in things_of(index):
        assert {thing.shape for thing in things} == set(SHAPES)


@pytest.mark.parametrize("index", range(12))
def test_a_thing_that_is_alone_has_another_colour_two_keep_theirs(index):
    colours = [len({thing.colour for thing in things}) for things in things_of(index)]
    assert colours in ([TWINS], [1, 1])


def test_some_scenes_of_each_kind_have_one_thing_and_some_two():
    for alike in (True, False):
        assert {len(things_of(index)) for index in range(12) if do_alike(index) == alike} == {1, 2}


@pytest.mark.parametrize("index", range(0, 12, 2))
def test_twins_that_do_alike_are_at_the_same_places(index):
    assert do_alike(index)
    assert len({placed.centres for placed, _ in family(index)}) == 1
    for things in things_of(index):
        assert len({(thing.motion, thing.speed) for thing in things}) == 1


@pytest.mark.parametrize("index", range(1, 12, 2))
def test_others_do_something_else_of_what_as_many_things_may(index):
    assert not do_alike(index)
    for things in things_of(index):
        motions = {thing.motion for thing in things}
        assert len(motions) == TWINS
        assert motions <= set(motions_of(len(things_of(index))))
        assert all((thing.speed is None) == (thing.motion == "still") for thing in things)


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


def test_images_are_of_twins_that_differ_as_images_do(clips):
    batch = pick(clips, Reads(), np.random.default_rng(0), Selection(64, 4, images=True))
    assert all(do_alike(int(index) // TWINS) for index in batch.latents[:, 0, 0, 0, 0])


def test_a_family_is_in_the_guise_of_any_of_its_twins(clips):
    guised = Counter()
    for seed in range(20):
        batch = pick(clips, Reads(), np.random.default_rng(seed), Selection(24, 2))
        own, guises = (latents[:, 0, 0, 0, 0].int().view(-1, 2) for latents in (batch.latents, batch.guises))
        assert bool((guises[:, 0] == guises[:, 1]).all())
        assert bool((guises // TWINS == own // TWINS).all())
        guised.update((guises == own).flatten().tolist())
    assert guised[True] / guised.total() == pytest.approx(1 / TWINS, abs=0.1)
