"""The grammar: what is said of a scene is understood again."""

from dataclasses import replace

import numpy as np
import pytest

from training.captions import Meaning, agrees, caption, of_second_thing, read, vocabulary
from training.world import random_scene


def told(seed, pair_share=0.3):
    random = np.random.default_rng(seed)
    scene = random_scene(random, pair_share)
    return scene, caption(scene, random)


@pytest.mark.parametrize("first", range(0, 800, 200))
def test_every_caption_is_understood_as_the_scene_that_it_tells(first):
    for seed in range(first, first + 200):
        scene, text = told(seed)
        assert agrees(read(text), scene), text


def test_colour_shape_and_motion_are_always_said():
    for seed in range(200):
        _, text = told(seed)
        for thing in read(text).things:
            assert thing.colour and thing.shape and thing.motion, text  # noqa: PT018 one fact


def test_some_captions_leave_out_what_need_not_be_said():
    meanings = [read(told(seed)[1]) for seed in range(200)]
    assert any(meaning.ground is None for meaning in meanings)
    assert any(thing.size is None for meaning in meanings for thing in meaning.things)
    assert any(
        thing.speed is None for meaning in meanings for thing in meaning.things if thing.motion != "still"
    )


def test_captions_come_in_many_phrasings_and_in_both_cases():
    random = np.random.default_rng(0)
    scene = random_scene(random, pair_share=0.0)
    captions = {caption(scene, random) for _ in range(200)}
    assert len(captions) > 100
    assert any(text.isupper() for text in captions)
    assert any(text[0].islower() for text in captions)


def test_a_seed_always_says_the_same():
    assert told(5) == told(5)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a small red ball moving left slowly", Meaning("ball", "red", "left", "slow", "small")),
        ("THE HUGE VIOLET BOX QUICKLY RISES.", Meaning("square", "purple", "up", "fast", "big")),
        ("a cyan star moving in a circle", Meaning("star", "cyan", "circling", None, None)),
        ("A quick green disc bouncing up and down", Meaning("ball", "green", "bouncing", "fast", None)),
        ("a yellow triangle does not move", Meaning("triangle", "yellow", "still", None, None)),
        ("a blue square getting bigger", Meaning("square", "blue", "growing", None, None)),
    ],
)
def test_phrasings_mean_what_they_say(text, meaning):
    assert read(text).things == (meaning,)


def test_the_ground_is_understood_before_and_after():
    for text in (
        "On a striped grey ground, a red ball rests",
        "a red ball rests over a gray backdrop with stripes",
    ):
        meaning = read(text)
        assert (meaning.ground, meaning.striped) == ("gray", True)


def test_a_ground_that_is_not_called_striped_is_plain():
    assert read("a red ball rests on a white background").striped is False


def test_nothing_is_known_of_a_ground_that_is_not_mentioned():
    meaning = read("a red ball rests")
    assert meaning.ground is None
    assert meaning.striped is None


def test_either_of_two_things_may_be_told_first():
    scene, _ = told(7, pair_share=1.0)
    random = np.random.default_rng(0)
    captions = [caption(scene, random) for _ in range(20)]
    assert all(agrees(read(text), scene) for text in captions)
    assert len({read(text).things[0].colour for text in captions}) == 2


def test_a_caption_does_not_agree_with_another_scene():
    scene, text = told(7, pair_share=0.0)
    (thing,) = scene.things
    other = replace(thing, colour="red" if thing.colour != "red" else "blue")
    assert not agrees(read(text), replace(scene, things=(other,)))
    assert not agrees(read(text), replace(scene, things=(thing, other)))


def test_the_vocabulary_has_every_word_of_every_caption():
    known = set(vocabulary())
    for seed in range(200):
        _, text = told(seed)
        words = text.lower().replace(",", " ").replace(".", " ").split()
        assert set(words) <= known, set(words) - known


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("a red ball rests", "----"),
        ("A red ball and a blue star.", "---++++"),
        ("On a black ground, a red ball and the blue star moving to the left", "-------++++++++"),
    ],
)
def test_words_belong_to_the_first_or_the_second_thing(text, second):
    assert "".join("+" if word else "-" for word in of_second_thing(text)) == second
