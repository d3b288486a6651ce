"""Requests and scores of trials, checked on videos rendered from the scenes themselves."""

import pytest
import torch

from model.spec.geometry import Size
from training.captions import ObjectDescription, SceneDescription, matches, parse_caption
from training.evaluation import (
    CONDITION_FRAMES,
    NUM_FRAMES,
    TASKS,
    Trial,
    change_colour,
    compare,
    frame_rate,
)
from training.scenes import draw

RED_BALL = SceneDescription((ObjectDescription("ball", "red", "left", "slow", None),), "black", striped=False)


@pytest.fixture
def trial():
    return Trial.from_index(0)


def perfect_video(trial, scale=1):
    times = torch.linspace(0, NUM_FRAMES - 1, scale * NUM_FRAMES)
    return draw(trial.placed, times, scale)


def evaluate(task, trial, *videos):
    return TASKS[task].evaluate(trial, list(videos))


def test_index_determines_trial():
    assert Trial.from_index(5) == Trial.from_index(5) != Trial.from_index(6)


def test_prompt_describes_scene_of_trial():
    for index in range(50):
        trial = Trial.from_index(index)
        assert matches(parse_caption(trial.prompt), trial.placed.scene)


def test_matching_video_is_correct():
    assert all(compare(parse_caption("a red ball moving left"), RED_BALL).values())


def test_only_differing_property_is_incorrect():
    correct = compare(parse_caption("a red star moving left"), RED_BALL)
    assert correct == {"colour": True, "shape": False, "motion": True, "count": True}


def test_two_objects_are_compared_in_better_order():
    expected = parse_caption("a red ball moving left and a blue star rising")
    assert all(compare(expected, SceneDescription(expected.objects[::-1], None, None)).values())
    mixed = parse_caption("a red star moving left and a blue ball rising")
    assert compare(expected, mixed) == {"colour": True, "shape": False, "motion": True, "count": True}


@pytest.mark.parametrize("objects", [(), RED_BALL.objects * 2])
def test_nothing_is_correct_if_number_of_objects_differs(objects):
    actual = SceneDescription(objects, None, None)
    assert not any(compare(parse_caption("a red ball moving left"), actual).values())


def test_refinement_doubles_frame_rate(trial):
    assert (frame_rate(perfect_video(trial)), frame_rate(perfect_video(trial, scale=2))) == (15, 30)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("task", ["text to video", "image to video", "continuation"])
def test_rendered_video_has_perfect_scores(trial, task, scale):
    correct, scores = evaluate(task, trial, perfect_video(trial, scale))
    assert all(correct.values())
    assert all(score == 100 for name, score in scores.items() if name.endswith("%"))
    assert scores.get("first frame, dB", 40) > 30
    assert scores.get("join error, px", 0) < 0.2


def test_difference_from_image_is_measured_in_decibels(trial):
    _, scores = evaluate("image to video", trial, (perfect_video(trial) + 0.1).clamp(0, 1))
    assert 18 < scores["first frame, dB"] < 25


def test_jump_in_continuation_is_measured_in_pixels(trial):
    video = perfect_video(trial)
    video[CONDITION_FRAMES:] = video[CONDITION_FRAMES:].roll(7, 1)
    assert evaluate("continuation", trial, video)[1]["join error, px"] == pytest.approx(7, abs=0.2)


def test_missing_object_has_largest_join_error(trial):
    correct, scores = evaluate("continuation", trial, torch.full((NUM_FRAMES, 64, 96, 3), 0.5))
    assert not any(correct.values())
    assert scores["join error, px"] == 80


def test_long_video_is_evaluated_as_a_whole(trial):
    (request,) = TASKS["long video"].requests(trial)
    correct, scores = evaluate("long video", trial, draw(trial.placed, torch.arange(125.0)))
    assert request.num_segments == 10
    assert all(correct.values())
    assert scores == {"8 s all right, %": 100}


def test_requests_contain_large_image_and_short_clip():
    trial = Trial.from_index(1)
    (with_image,) = TASKS["image to video"].requests(trial)
    (with_clip,) = TASKS["continuation"].requests(trial)
    assert with_image.image is not None
    assert with_clip.video is not None
    assert Size(*with_image.image.shape[:2]) == (128, 192)
    assert with_clip.video.shape == (CONDITION_FRAMES, 64, 96, 3)


@pytest.mark.parametrize(
    ("prompt", "changed"),
    [
        ("A red ball rests.", "A blue ball rests."),
        ("WE SEE A TURQUOISE STAR", "WE SEE A BLUE STAR"),
        ("a blue box rises", "a red box rises"),
        ("a red ball and a blue star", "a green ball and a blue star"),
    ],
)
def test_colour_of_first_object_is_changed(prompt, changed):
    assert change_colour(prompt) == changed


def test_changed_colour_alone_leaves_background_unchanged(trial):
    before = perfect_video(trial)
    is_background = (before.amax(-1) - before.amin(-1)) < 0.3
    after = before.roll(1, -1)
    after[is_background] = before[is_background]
    _, scores = evaluate("one word changed", trial, before, after)
    assert scores["in place, %"] > 95
    assert scores["elsewhere, levels"] < 1


def test_changed_background_is_measured_in_levels(trial):
    before = perfect_video(trial)
    _, scores = evaluate("one word changed", trial, before, (before + 0.1).clamp(0, 1))
    assert scores["elsewhere, levels"] > 10
