"""What is ordered in a trial, and how what comes is judged: on films that the world itself drew."""

import pytest
import torch

from model.spec.shapes import Size
from training.captions import Meaning, Told, agrees, read
from training.trials import HELD_FRAMES, NUM_FRAMES, TASKS, Trial, fps_of, judged, recoloured
from training.world import draw

RED_BALL = Told((Meaning("ball", "red", "left", "slow", None),), "black", striped=False)
TIMES = torch.arange(float(NUM_FRAMES))


@pytest.fixture
def trial():
    return Trial.number(0)


def film_of(trial, scale=1):
    times = torch.linspace(0, NUM_FRAMES - 1, scale * NUM_FRAMES)
    return draw(trial.placed, times, scale)


def judge(task, trial, *films):
    return TASKS[task].judge(trial, list(films))


def test_a_number_always_means_the_same_trial():
    assert Trial.number(5) == Trial.number(5) != Trial.number(6)


def test_a_caption_tells_of_its_scene():
    for index in range(50):
        trial = Trial.number(index)
        assert agrees(read(trial.told), trial.placed.scene)


def test_what_was_told_and_seen_is_right():
    assert all(judged(read("a red ball moving left"), RED_BALL).values())


def test_what_was_told_otherwise_is_wrong_and_nothing_else():
    right = judged(read("a red star moving left"), RED_BALL)
    assert right == {"colour": True, "shape": False, "motion": True, "count": True}


def test_two_things_are_right_in_either_order():
    told = read("a red ball moving left and a blue star rising")
    seen = Told(told.things[::-1], None, None)
    assert all(judged(told, seen).values())
    mixed = read("a red star moving left and a blue ball rising")
    assert judged(told, mixed) == {"colour": True, "shape": False, "motion": True, "count": True}


def test_a_thing_too_many_makes_everything_wrong():
    two = Told(RED_BALL.things * 2, "black", striped=False)
    assert not any(judged(read("a red ball moving left"), two).values())


def test_nothing_seen_is_wrong():
    assert not any(judged(read("a red ball moving left"), Told((), None, None)).values())


def test_refinement_doubles_the_frame_rate(trial):
    assert (fps_of(film_of(trial)), fps_of(film_of(trial, scale=2))) == (15, 30)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("task", ["text to video", "image to video", "continuation"])
def test_what_the_world_would_have_drawn_is_all_right(trial, task, scale):
    right, scores = judge(task, trial, film_of(trial, scale))
    assert all(right.values())
    assert all(score == 100 for name, score in scores.items() if name.endswith("%"))
    assert scores.get("first frame, dB", 40) > 30
    assert scores.get("join error, px", 0) < 0.2


def test_another_first_frame_is_told_in_decibels(trial):
    _, scores = judge("image to video", trial, (film_of(trial) + 0.1).clamp(0, 1))
    assert 18 < scores["first frame, dB"] < 25


def test_a_jump_where_a_clip_goes_on_is_told_in_pixels(trial):
    jumps = film_of(trial)
    jumps[HELD_FRAMES:] = jumps[HELD_FRAMES:].roll(7, 1)
    assert judge("continuation", trial, jumps)[1]["join error, px"] == pytest.approx(7, abs=0.2)


def test_a_film_in_which_nothing_is_left_is_as_far_off_as_can_be(trial):
    right, scores = judge("continuation", trial, torch.full((NUM_FRAMES, 64, 96, 3), 0.5))
    assert not any(right.values())
    assert scores["join error, px"] == 80


def test_a_long_film_is_judged_whole():
    trial = Trial.number(0)
    (order,) = TASKS["long video"].orders(trial)
    right, scores = judge("long video", trial, draw(trial.placed, torch.arange(125.0)))
    assert order.num_segments == 10
    assert all(right.values())
    assert scores == {"8 s all right, %": 100}


def test_an_image_is_given_large_and_a_clip_as_long_as_it_is_held():
    trial = Trial.number(1)
    (by_image,) = TASKS["image to video"].orders(trial)
    (by_clip,) = TASKS["continuation"].orders(trial)
    assert Size(*by_image.image.shape[:2]) == (128, 192)
    assert by_clip.video.shape == (HELD_FRAMES, 64, 96, 3)


@pytest.mark.parametrize(
    ("told", "other"),
    [
        ("A red ball rests.", "A blue ball rests."),
        ("WE SEE A TURQUOISE STAR", "WE SEE A BLUE STAR"),
        ("a blue box rises", "a red box rises"),
        ("a red ball and a blue star", "a green ball and a blue star"),
    ],
)
def test_one_word_is_changed(told, other):
    assert recoloured(told) == other


def test_two_films_that_differ_in_a_colour_alone_differ_nowhere_else(trial):
    before = film_of(trial)
    after = before.roll(1, -1)
    after[(before.amax(-1) - before.amin(-1)) < 0.3] = before[(before.amax(-1) - before.amin(-1)) < 0.3]
    _, scores = judge("one word changed", trial, before, after)
    assert scores["in place, %"] > 95
    assert scores["elsewhere, levels"] < 1


def test_two_films_with_different_grounds_differ_elsewhere(trial):
    before = film_of(trial)
    _, scores = judge("one word changed", trial, before, (before + 0.1).clamp(0, 1))
    assert scores["elsewhere, levels"] > 10
