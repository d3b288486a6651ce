"""Scenes are deterministic and are rendered as their properties say."""

import numpy as np
import pytest
import torch

from training.scenes import (
    COLOURS,
    HEIGHT,
    MOTIONS,
    SHAPES,
    WIDTH,
    Scene,
    SceneObject,
    coverage,
    draw,
    draw_background,
    place,
    random_scene,
    signed_distance,
    trajectory,
)

TIMES = torch.arange(17.0)


def scene_of(seed, **options):
    return random_scene(np.random.default_rng(seed), **options)


def clip_of(seed):
    random = np.random.default_rng(seed)
    return draw(place(random_scene(random), random), TIMES)


def make_object(motion="still", shape="ball", speed="slow", size="small"):
    return SceneObject(shape, "red", motion, speed, size)


def covered(shape, row=32.0, column=48.0, radius=12.0, scale=1):
    return coverage(shape, torch.tensor([row]), torch.tensor([column]), torch.tensor([radius]), scale)


def test_seed_determines_clip():
    assert torch.equal(clip_of(3), clip_of(3))
    assert not torch.equal(clip_of(3), clip_of(4))


def test_frames_have_documented_size_and_range():
    clip = clip_of(0)
    assert clip.shape == (17, HEIGHT, WIDTH, 3)
    assert clip.min() >= 0
    assert clip.max() <= 1


def test_double_scale_renders_same_picture_larger():
    random = np.random.default_rng(0)
    placed = place(random_scene(random), random)
    large, small = draw(placed, TIMES[:3], scale=2), draw(placed, TIMES[:3])
    assert large.shape == (3, 2 * HEIGHT, 2 * WIDTH, 3)
    downsampled = large.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean((2, 4))
    assert (downsampled - small).abs().mean() < 0.01


def test_every_property_value_occurs():
    objects = [obj for seed in range(150) for obj in scene_of(seed).objects]
    assert {obj.shape for obj in objects} == set(SHAPES)
    assert {obj.colour for obj in objects} == set(COLOURS)
    assert {obj.motion for obj in objects} == set(MOTIONS)


def test_only_still_objects_have_no_speed():
    objects = [obj for seed in range(200) for obj in scene_of(seed).objects]
    assert all((obj.motion == "still") == (obj.speed is None) for obj in objects)


def test_two_objects_have_different_colours():
    pairs = [scene_of(seed, two_object_share=1.0).objects for seed in range(200)]
    assert all(len(pair) == 2 and pair[0].colour != pair[1].colour for pair in pairs)


def test_first_of_two_objects_is_on_the_left():
    for seed in range(100):
        random = np.random.default_rng(seed)
        placed = place(random_scene(random, two_object_share=1.0), random)
        assert placed.centres[0][1] < placed.centres[1][1]


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_is_symmetric_and_has_area_of_circle_with_its_radius(shape):
    assert float(covered(shape, scale=2).sum()) / 4 == pytest.approx(np.pi * 144, rel=0.02)
    assert torch.allclose(covered(shape), covered(shape).flip(2), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_is_negative_inside_and_positive_outside(shape):
    zero, far = torch.zeros(1), torch.full((1,), 3.0)
    assert signed_distance(shape, zero, zero) < 0
    assert signed_distance(shape, far, far) > 0


def test_shapes_wrap_around_edges():
    inside, across = covered("star", radius=10.0), covered("star", 0.0, 0.0, radius=10.0)
    assert torch.allclose(inside.roll((32, 48), (1, 2)), across, atol=1e-4)


@pytest.mark.parametrize(
    ("motion", "down", "right"),
    [("left", 0, -12.8), ("right", 0, 12.8), ("up", -12.8, 0), ("down", 12.8, 0), ("still", 0, 0)],
)
def test_straight_motion_has_direction_of_its_name(motion, down, right):
    rows, columns, _ = trajectory(make_object(motion), (0.0, 0.0), TIMES)
    assert float(rows[-1] - rows[0]) == pytest.approx(down, abs=1e-4)
    assert float(columns[-1] - columns[0]) == pytest.approx(right, abs=1e-4)


def test_fast_is_twice_as_fast_as_slow():
    slow, fast = (
        trajectory(make_object("right", speed=speed), (0.0, 0.0), TIMES)[1][-1] for speed in ("slow", "fast")
    )
    assert float(fast) == pytest.approx(2 * float(slow))


def test_circling_object_keeps_distance_from_centre():
    rows, columns, _ = trajectory(make_object("circling"), (30.0, 40.0), TIMES)
    assert torch.allclose(torch.hypot(rows - 30, columns - 40), torch.tensor(10.0))


def test_bouncing_object_returns_to_floor_and_stays_above_it():
    rows, _, _ = trajectory(make_object("bouncing"), (30.0, 40.0), TIMES)
    assert float(rows[16]) == pytest.approx(30.0, abs=1e-3)
    assert rows.max() <= 30.001
    assert rows.min() < 20


def test_growing_object_stops_at_maximum_radius():
    _, _, radius = trajectory(make_object("growing"), (0.0, 0.0), torch.arange(100.0))
    assert bool((radius.diff() >= 0).all())
    assert radius[0] < 10
    assert radius[-1] == 20


def test_placed_object_touches_no_edge_if_there_is_space():
    scene = Scene((make_object("right", size="small", shape="star"),), "black", striped=False)
    for seed in range(10):
        clip = draw(place(scene, np.random.default_rng(seed)), TIMES)
        edges = (clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1])
        assert float(torch.cat([edge.flatten() for edge in edges]).max()) < 0.1


def test_stripes_are_horizontal_and_periodic():
    striped = draw_background(Scene((), "gray", striped=True))
    assert torch.equal(striped[:, 0], striped[:, 50])
    assert torch.allclose(striped[:16], striped[16:32], atol=1e-6)
    assert float(striped[:16].std()) > 0.03


def test_plain_background_has_one_colour():
    assert float(draw_background(Scene((), "beige", striped=False)).flatten(0, 1).std(0).max()) == 0
