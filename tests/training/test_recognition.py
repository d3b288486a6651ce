"""Videos that were rendered from scenes are recognised, at any size and with noise and blur."""

import numpy as np
import pytest
import torch

from training.recognition import find_regions, recognise
from training.scenes import (
    COLOURS,
    MOTIONS,
    RADIUS_PX,
    SHAPES,
    PlacedScene,
    Scene,
    SceneObject,
    draw,
    place,
    random_scene,
)

TIMES = torch.arange(17.0)
EDGE_CENTRE = ((1.0, 94.0),)


def clip_of(seed, two_object_share=0.2):
    random = np.random.default_rng((77, seed))
    scene = random_scene(random, two_object_share)
    return scene, draw(place(scene, random), TIMES)


def one_object(motion="still", shape="ball", colour="red", speed="fast"):
    scene = Scene((SceneObject(shape, colour, motion, speed, "small"),), "gray", striped=False)
    return place(scene, np.random.default_rng(0))


def object_in(frames, fps=15):
    (obj,) = recognise(frames, fps).objects
    return obj


def properties_of(objects):
    return [(obj.shape, obj.colour, obj.motion) for obj in objects]


@pytest.mark.parametrize("count", [10, pytest.param(1000, marks=pytest.mark.soak)])
def test_rendered_clips_are_recognised(count):
    wrong = []
    for seed in range(count):
        scene, clip = clip_of(seed)
        found = recognise(clip)
        is_background_correct = (found.background, found.striped) == (scene.background, scene.striped)
        if properties_of(found.objects) != properties_of(scene.objects) or not is_background_correct:
            wrong.append(seed)
    assert len(wrong) <= count // 100, wrong


def test_every_motion_is_recognised():
    assert [object_in(draw(one_object(motion), TIMES)).motion for motion in MOTIONS] == list(MOTIONS)


def test_motion_across_edge_is_recognised():
    motions = [motion for motion in MOTIONS if motion != "growing"]
    clips = [draw(PlacedScene(one_object(motion).scene, EDGE_CENTRE), TIMES) for motion in motions]
    assert [object_in(clip).motion for clip in clips] == motions


def test_motion_is_recognised_in_long_video():
    motions = ["circling", "growing"]
    clips = [draw(one_object(motion), torch.arange(125.0)) for motion in motions]
    assert [object_in(clip).motion for clip in clips] == motions


def test_motion_is_recognised_in_twelve_new_frames_of_continuation():
    motions = [motion for motion in MOTIONS if motion != "growing"]
    clips = [draw(one_object(motion), torch.arange(40.0, 52.0)) for motion in motions]
    assert [object_in(clip).motion for clip in clips] == motions


def test_every_shape_is_recognised_at_double_size():
    clips = [draw(one_object(shape=shape), TIMES[:5], scale=2) for shape in SHAPES]
    assert [object_in(clip).shape for clip in clips] == list(SHAPES)


@pytest.mark.parametrize("motion", ["still", "right", "circling", "growing"])
def test_refined_video_is_recognised(motion):
    obj = object_in(draw(one_object(motion), torch.linspace(0, 16, 34), scale=2), fps=30)
    assert (obj.motion, obj.speed or "fast") == (motion, "fast")


def test_every_shape_is_recognised_in_blurred_video():
    for shape in SHAPES:
        clip = draw(one_object("right", shape), TIMES[:9]).movedim(-1, 1)
        blurred = torch.nn.functional.avg_pool2d(clip, 9, 1, 4, count_include_pad=False).movedim(1, -1)
        assert object_in(blurred).shape == shape


def test_every_colour_is_recognised():
    clips = [draw(one_object(colour=colour), TIMES[:5]) for colour in COLOURS]
    assert [object_in(clip).colour for clip in clips] == list(COLOURS)


@pytest.mark.parametrize("speed", ["slow", "fast"])
def test_speed_of_straight_motion_is_recognised(speed):
    assert object_in(draw(one_object("right", speed=speed), TIMES)).speed == speed


def test_objects_are_listed_from_left_to_right():
    for seed in range(4):
        scene, clip = clip_of(seed, two_object_share=1.0)
        assert [obj.colour for obj in recognise(clip).objects] == [obj.colour for obj in scene.objects]


def test_empty_scene_has_background_only():
    found = recognise(draw(PlacedScene(Scene((), "beige", striped=True), ()), TIMES))
    assert found.objects == ()
    assert (found.background, found.striped) == ("beige", True)


def test_object_is_recognised_in_noise():
    scene, clip = clip_of(1, two_object_share=0.0)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    assert properties_of(recognise((clip + 0.04 * noise).clamp(0, 1)).objects) == properties_of(scene.objects)


def test_object_that_turns_back_does_not_move_straight():
    forward = draw(one_object("right"), TIMES)
    assert object_in(torch.cat([forward, forward.flip(0)])).motion not in ("left", "right")


def test_small_speck_is_ignored():
    frame = torch.full((64, 96, 3), 0.5)
    frame[10:14, 10:14] = torch.tensor(COLOURS["red"])
    assert find_regions(frame[None]) == [[]]


def test_region_across_edge_is_one_region():
    placed = PlacedScene(one_object().scene, ((0.0, 0.0),))
    ((region,),) = find_regions(draw(placed, TIMES[:1]))
    assert region.area == pytest.approx(np.pi * RADIUS_PX[placed.scene.objects[0].size] ** 2, rel=0.15)
    assert min(region.row, 64 - region.row) < 1
