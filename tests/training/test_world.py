"""The pocket world: deterministic, and true to its own words."""

import numpy as np
import pytest
import torch

from training.world import (
    COLOURS,
    HEIGHT,
    MOTIONS,
    SHAPES,
    WIDTH,
    Scene,
    Thing,
    cover,
    distance_to,
    draw,
    ground_of,
    path,
    place,
    random_scene,
)

TIMES = torch.arange(17.0)


def scene_of(seed, **options):
    return random_scene(np.random.default_rng(seed), **options)


def clip_of(seed):
    random = np.random.default_rng(seed)
    return draw(place(random_scene(random), random), TIMES)


def thing(motion="still", shape="ball", speed="slow", size="small"):
    return Thing(shape, "red", motion, speed, size)


def test_a_seed_always_draws_the_same_clip():
    assert torch.equal(clip_of(3), clip_of(3))


def test_different_seeds_draw_different_clips():
    assert not torch.equal(clip_of(3), clip_of(4))


def test_frames_have_the_world_s_size_and_range():
    clip = clip_of(0)
    assert clip.shape == (17, HEIGHT, WIDTH, 3)
    assert clip.min() >= 0
    assert clip.max() <= 1


def test_a_clip_can_be_drawn_twice_as_large():
    random = np.random.default_rng(0)
    placed = place(random_scene(random), random)
    large, small = draw(placed, TIMES[:3], scale=2), draw(placed, TIMES[:3])
    assert large.shape == (3, 2 * HEIGHT, 2 * WIDTH, 3)
    halves = large.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean((2, 4))
    assert (halves - small).abs().mean() < 0.01


def test_every_property_occurs():
    things = [thing for seed in range(150) for thing in scene_of(seed).things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.motion for thing in things} == set(MOTIONS)


def test_a_still_thing_has_no_speed_and_every_other_has_one():
    things = [thing for seed in range(200) for thing in scene_of(seed).things]
    assert all((thing.motion == "still") == (thing.speed is None) for thing in things)


def test_two_things_have_different_colours():
    pairs = [scene_of(seed, pair_share=1.0).things for seed in range(200)]
    assert all(len(pair) == 2 and pair[0].colour != pair[1].colour for pair in pairs)


def test_the_first_of_two_things_is_on_the_left():
    for seed in range(100):
        random = np.random.default_rng(seed)
        placed = place(random_scene(random, pair_share=1.0), random)
        assert placed.centres[0][1] < placed.centres[1][1]


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_are_as_large_as_a_ball_of_their_radius(shape):
    share = cover(shape, torch.tensor([32.0]), torch.tensor([48.0]), torch.tensor([12.0]), 2)
    assert float(share.sum()) / 4 == pytest.approx(np.pi * 144, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_middle_of_a_shape_is_inside_and_far_away_is_outside(shape):
    zero, far = torch.zeros(1), torch.full((1,), 3.0)
    assert distance_to(shape, zero, zero) < 0
    assert distance_to(shape, far, far) > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_symmetric_from_left_to_right(shape):
    share = cover(shape, torch.tensor([32.0]), torch.tensor([48.0]), torch.tensor([12.0]))
    assert torch.allclose(share, share.flip(2), atol=1e-4)


def test_what_leaves_on_one_side_comes_back_on_the_other():
    inside = cover("star", torch.tensor([32.0]), torch.tensor([48.0]), torch.tensor([10.0]))
    across = cover("star", torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([10.0]))
    assert torch.allclose(inside.roll((32, 48), (1, 2)), across, atol=1e-4)


@pytest.mark.parametrize(
    ("motion", "down", "right"),
    [("left", 0, -12.8), ("right", 0, 12.8), ("up", -12.8, 0), ("down", 12.8, 0), ("still", 0, 0)],
)
def test_straight_motions_go_where_their_name_says(motion, down, right):
    rows, columns, _ = path(thing(motion), (0.0, 0.0), TIMES)
    assert float(rows[-1] - rows[0]) == pytest.approx(down, abs=1e-4)
    assert float(columns[-1] - columns[0]) == pytest.approx(right, abs=1e-4)


def test_fast_is_twice_as_fast_as_slow():
    slow, fast = (path(thing("right", speed=speed), (0.0, 0.0), TIMES)[1][-1] for speed in ("slow", "fast"))
    assert float(fast) == pytest.approx(2 * float(slow))


def test_a_circling_thing_keeps_its_distance_from_a_point():
    rows, columns, _ = path(thing("circling"), (30.0, 40.0), TIMES)
    assert torch.allclose(torch.hypot(rows - 30, columns - 40), torch.tensor(10.0))


def test_a_bouncing_thing_comes_back_to_the_floor_and_never_below():
    rows, _, _ = path(thing("bouncing"), (30.0, 40.0), TIMES)
    assert float(rows[16]) == pytest.approx(30.0, abs=1e-3)
    assert rows.max() <= 30.001
    assert rows.min() < 20


def test_a_growing_thing_grows_until_it_is_large_enough():
    _, _, radius = path(thing("growing"), (0.0, 0.0), torch.arange(100.0))
    assert bool((radius.diff() >= 0).all())
    assert radius[0] < 10
    assert radius[-1] == 20


def test_nothing_touches_an_edge_where_there_is_room():
    for seed in range(10):
        random = np.random.default_rng(seed)
        scene = Scene((thing("right", size="small", shape="star"),), "black", striped=False)
        clip = draw(place(scene, random), TIMES)
        edge = torch.cat(
            [clip[:, 0].flatten(), clip[:, -1].flatten(), clip[:, :, 0].flatten(), clip[:, :, -1].flatten()]
        )
        assert float(edge.max()) < 0.1


def test_stripes_lie_across_and_repeat():
    striped = ground_of(Scene((), "gray", striped=True))
    assert torch.equal(striped[:, 0], striped[:, 50])
    assert torch.allclose(striped[:16], striped[16:32], atol=1e-6)
    assert float(striped[:16].std()) > 0.03


def test_a_plain_ground_is_one_colour():
    assert float(ground_of(Scene((), "beige", striped=False)).flatten(0, 1).std(0).max()) == 0
