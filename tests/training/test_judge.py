"""The judge: right on the world's own clips, whatever their size, and not easily fooled."""

import numpy as np
import pytest
import torch

from training.judge import look, regions
from training.world import (
    COLOURS,
    MOTIONS,
    RADIUS_PX,
    SHAPES,
    Placed,
    Scene,
    Thing,
    draw,
    place,
    random_scene,
)

TIMES = torch.arange(17.0)


def clip_of(seed, pair_share=0.2):
    random = np.random.default_rng((77, seed))
    scene = random_scene(random, pair_share)
    return scene, draw(place(scene, random), TIMES)


def alone(motion="still", shape="ball", colour="red", speed="fast"):
    scene = Scene((Thing(shape, colour, motion, speed, "small"),), "gray", striped=False)
    return place(scene, np.random.default_rng(0))


@pytest.mark.parametrize("count", [10, pytest.param(1000, marks=pytest.mark.soak)])
def test_of_many_clips_everything_is_seen_rightly(count):
    wrong = []
    for seed in range(count):
        scene, clip = clip_of(seed)
        seen = look(clip)
        same = [(a.shape, a.colour, a.motion) for a in seen.things] == [
            (b.shape, b.colour, b.motion) for b in scene.things
        ]
        if not (same and (seen.ground, seen.striped) == (scene.ground, scene.striped)):
            wrong.append(seed)
    assert len(wrong) <= count // 100, wrong


@pytest.mark.parametrize("motion", MOTIONS)
def test_each_motion_is_seen(motion):
    (thing,) = look(draw(alone(motion), TIMES)).things
    assert thing.motion == motion


@pytest.mark.parametrize("motion", [motion for motion in MOTIONS if motion != "growing"])
def test_each_motion_is_seen_as_well_when_it_crosses_the_edge(motion):
    placed = Placed(alone(motion).scene, ((1.0, 94.0),))
    (thing,) = look(draw(placed, TIMES)).things
    assert thing.motion == motion


@pytest.mark.parametrize("motion", ["circling", "growing"])
def test_motions_are_seen_in_eight_seconds(motion):
    (thing,) = look(draw(alone(motion), torch.arange(125.0))).things
    assert thing.motion == motion


@pytest.mark.parametrize("motion", [motion for motion in MOTIONS if motion != "growing"])
def test_each_motion_is_seen_in_the_twelve_frames_of_a_continuation(motion):
    (thing,) = look(draw(alone(motion), torch.arange(40.0, 52.0))).things
    assert thing.motion == motion


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_seen_at_twice_the_size(shape):
    (thing,) = look(draw(alone(shape=shape), TIMES[:5], scale=2)).things
    assert thing.shape == shape


@pytest.mark.parametrize("motion", ["still", "right", "circling", "growing"])
def test_a_refined_clip_is_seen_as_what_was_refined(motion):
    (thing,) = look(draw(alone(motion), torch.linspace(0, 16, 34), scale=2), fps=30).things
    assert (thing.motion, thing.speed or "fast") == (motion, "fast")


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_seen_though_it_is_blurred(shape):
    clip = draw(alone("right", shape), TIMES[:9]).movedim(-1, 1)
    blurred = torch.nn.functional.avg_pool2d(clip, 9, 1, 4, count_include_pad=False).movedim(1, -1)
    (thing,) = look(blurred).things
    assert thing.shape == shape


@pytest.mark.parametrize("colour", COLOURS)
def test_each_colour_is_seen(colour):
    (thing,) = look(draw(alone(colour=colour), TIMES[:5])).things
    assert thing.colour == colour


@pytest.mark.parametrize("speed", ["slow", "fast"])
def test_the_speed_of_a_straight_motion_is_seen(speed):
    (thing,) = look(draw(alone("right", speed=speed), TIMES)).things
    assert thing.speed == speed


def test_two_things_are_told_from_left_to_right():
    for seed in range(4):
        scene, clip = clip_of(seed, pair_share=1.0)
        assert [thing.colour for thing in look(clip).things] == [thing.colour for thing in scene.things]


def test_nothing_is_seen_where_there_is_nothing():
    seen = look(draw(Placed(Scene((), "beige", striped=True), ()), TIMES))
    assert seen.things == ()
    assert (seen.ground, seen.striped) == ("beige", True)


def test_noise_does_not_hide_a_thing():
    scene, clip = clip_of(1, pair_share=0.0)
    noisy = (clip + 0.04 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert [(a.shape, a.colour, a.motion) for a in look(noisy).things] == [
        (b.shape, b.colour, b.motion) for b in scene.things
    ]


def test_a_thing_that_changes_its_way_is_not_said_to_move_straight():
    there = draw(alone("right"), TIMES)
    (thing,) = look(torch.cat([there, there.flip(0)])).things
    assert thing.motion not in ("left", "right")


def test_a_speck_is_no_thing():
    frame = torch.full((64, 96, 3), 0.5)
    frame[10:14, 10:14] = torch.tensor(COLOURS["red"])
    assert regions(frame[None]) == [[]]


def test_a_region_across_the_edge_is_one_region():
    placed = Placed(alone().scene, ((0.0, 0.0),))
    ((region,),) = regions(draw(placed, TIMES[:1]))
    assert region.area == pytest.approx(np.pi * RADIUS_PX[placed.scene.things[0].size] ** 2, rel=0.15)
    assert min(region.row, 64 - region.row) < 1
