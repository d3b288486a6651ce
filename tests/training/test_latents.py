"""The dataset consists of contrastive groups, and batches keep them together."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from training.latents import GROUP_SIZE, LatentDataset, clip_latents, clip_scene, shares_motion
from training.scenes import SHAPES, allowed_motions
from training.transformer import BatchSpec, sample_batch

GROUPS = range(12)


class IdentityEncoders:
    """Return latents and captions unchanged."""

    def normalise(self, latents):
        return latents

    def encode_text(self, captions):
        return captions


def clips_of_group(group):
    return [clip_scene(GROUP_SIZE * group + member) for member in range(GROUP_SIZE)]


def versions_of_objects(group):
    """Return for each object of the scene its versions in the clips of the group."""
    return list(zip(*(placed.scene.objects for placed, _ in clips_of_group(group)), strict=True))


def as_still_red_balls(scene):
    neutral = {"shape": "ball", "colour": "red", "motion": "still", "speed": None}
    return replace(scene, objects=tuple(replace(obj, **neutral) for obj in scene.objects))


@pytest.fixture
def dataset():
    """Sixteen groups; the latents of each clip are its index."""
    count = 16 * GROUP_SIZE
    return LatentDataset.of(torch.arange(float(count)).view(-1, 1, 1, 1, 1).expand(-1, 16, 5, 8, 12))


def indices(latents, group_size):
    return latents[:, 0, 0, 0, 0].int().view(-1, group_size)


def test_clips_of_group_differ_in_shape_colour_and_motion_only():
    for group in GROUPS:
        clips = clips_of_group(group)
        assert len({as_still_red_balls(placed.scene) for placed, _ in clips}) == 1
        assert len({first for _, first in clips}) == 1


def test_object_has_each_shape_once_in_group():
    for group in GROUPS:
        for versions in versions_of_objects(group):
            assert {obj.shape for obj in versions} == set(SHAPES)


def test_single_object_changes_colour_and_two_keep_theirs():
    for group in GROUPS:
        colours = [len({obj.colour for obj in versions}) for versions in versions_of_objects(group)]
        assert colours in ([GROUP_SIZE], [1, 1])


def test_groups_of_both_kinds_have_one_or_two_objects():
    for same_motion in (True, False):
        groups = [group for group in GROUPS if shares_motion(group) == same_motion]
        assert {len(versions_of_objects(group)) for group in groups} == {1, 2}


def test_even_groups_share_motion_and_position():
    for group in GROUPS[::2]:
        assert shares_motion(group)
        assert len({placed.centres for placed, _ in clips_of_group(group)}) == 1
        for versions in versions_of_objects(group):
            assert len({(obj.motion, obj.speed) for obj in versions}) == 1


def test_odd_groups_have_different_allowed_motions():
    for group in GROUPS[1::2]:
        assert not shares_motion(group)
        for versions in versions_of_objects(group):
            motions = {obj.motion for obj in versions}
            assert len(motions) == GROUP_SIZE
            assert motions <= set(allowed_motions(len(versions_of_objects(group))))
            assert all((obj.speed is None) == (obj.motion == "still") for obj in versions)


def test_clip_is_encoded_to_finite_latents():
    latents = clip_latents(3)
    assert latents.shape == (16, 5, 8, 12)
    assert torch.isfinite(latents).all()


@pytest.mark.parametrize("group_size", [2, 4])
def test_batch_consists_of_different_clips_of_same_groups(dataset, group_size):
    encoders: Any = IdentityEncoders()
    spec = BatchSpec(8, group_size, images=True)
    batch = sample_batch(dataset, encoders, np.random.default_rng(0), spec)
    clips = indices(batch.latents, group_size)
    assert batch.group_size == group_size
    assert bool((clips // GROUP_SIZE == clips[:, :1] // GROUP_SIZE).all())
    assert all(len(set(row)) == group_size for row in clips.tolist())
    assert all(clip_scene(index)[1] == 0 for index in clips.flatten().tolist())


def test_image_batches_use_only_groups_that_share_motion(dataset):
    encoders: Any = IdentityEncoders()
    spec = BatchSpec(64, 4, images=True)
    batch = sample_batch(dataset, encoders, np.random.default_rng(0), spec)
    assert all(shares_motion(index // GROUP_SIZE) for index in indices(batch.latents, 1).flatten().tolist())


def test_shared_latents_are_those_of_any_clip_of_group(dataset):
    encoders: Any = IdentityEncoders()
    is_own: Counter[bool] = Counter()
    for seed in range(20):
        batch = sample_batch(dataset, encoders, np.random.default_rng(seed), BatchSpec(24, 2))
        own, shared = (indices(latents, 2) for latents in (batch.latents, batch.shared_latents))
        assert bool((shared[:, 0] == shared[:, 1]).all())
        assert bool((shared // GROUP_SIZE == own // GROUP_SIZE).all())
        is_own.update((shared == own).flatten().tolist())
    assert is_own[True] / is_own.total() == pytest.approx(1 / GROUP_SIZE, abs=0.1)
