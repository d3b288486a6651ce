"""Captions are parsed back to the scene that they describe."""

from dataclasses import replace

import numpy as np
import pytest

from training.captions import (
    ObjectDescription,
    matches,
    parse_caption,
    random_caption,
    second_object_words,
    vocabulary,
)
from training.scenes import random_scene


def captioned(seed, two_object_share=0.3):
    random = np.random.default_rng(seed)
    scene = random_scene(random, two_object_share)
    return scene, random_caption(scene, random)


def test_parsed_caption_matches_scene():
    for seed in range(800):
        scene, text = captioned(seed)
        assert matches(parse_caption(text), scene), text


def test_captions_always_mention_colour_shape_and_motion():
    for seed in range(200):
        _, text = captioned(seed)
        for obj in parse_caption(text).objects:
            assert None not in (obj.colour, obj.shape, obj.motion), text


def test_captions_sometimes_omit_background_size_and_speed():
    descriptions = [parse_caption(captioned(seed)[1]) for seed in range(200)]
    objects = [obj for description in descriptions for obj in description.objects]
    assert any(description.background is None for description in descriptions)
    assert any(obj.size is None for obj in objects)
    assert any(obj.speed is None for obj in objects if obj.motion != "still")


def test_captions_vary_in_phrasing_and_case():
    random = np.random.default_rng(0)
    scene = random_scene(random, two_object_share=0.0)
    captions = {random_caption(scene, random) for _ in range(200)}
    assert len(captions) > 100
    assert any(text.isupper() for text in captions)
    assert any(text[0].islower() for text in captions)


def test_seed_determines_caption():
    assert captioned(5) == captioned(5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a small red ball moving left slowly", ObjectDescription("ball", "red", "left", "slow", "small")),
        ("THE HUGE VIOLET BOX QUICKLY RISES.", ObjectDescription("square", "purple", "up", "fast", "big")),
        ("a cyan star moving in a circle", ObjectDescription("star", "cyan", "circling", None, None)),
        (
            "A quick green disc bouncing up and down",
            ObjectDescription("ball", "green", "bouncing", "fast", None),
        ),
        ("a yellow triangle does not move", ObjectDescription("triangle", "yellow", "still", None, None)),
        ("a blue square getting bigger", ObjectDescription("square", "blue", "growing", None, None)),
    ],
)
def test_phrasings_are_parsed(text, expected):
    assert parse_caption(text).objects == (expected,)


@pytest.mark.parametrize(
    ("text", "background", "striped"),
    [
        ("On a striped grey ground, a red ball rests", "gray", True),
        ("a red ball rests over a gray backdrop with stripes", "gray", True),
        ("a red ball rests on a white background", "white", False),
        ("a red ball rests", None, None),
    ],
)
def test_background_is_parsed(text, background, striped):
    description = parse_caption(text)
    assert (description.background, description.striped) == (background, striped)


def test_either_of_two_objects_may_be_named_first():
    scene, _ = captioned(7, two_object_share=1.0)
    random = np.random.default_rng(0)
    captions = [random_caption(scene, random) for _ in range(20)]
    assert all(matches(parse_caption(text), scene) for text in captions)
    assert len({parse_caption(text).objects[0].colour for text in captions}) == 2


def test_caption_does_not_match_other_scenes():
    scene, text = captioned(7, two_object_share=0.0)
    (obj,) = scene.objects
    other = replace(obj, colour="red" if obj.colour != "red" else "blue")
    assert not matches(parse_caption(text), replace(scene, objects=(other,)))
    assert not matches(parse_caption(text), replace(scene, objects=(obj, other)))


def test_vocabulary_contains_every_word_of_captions():
    known = set(vocabulary())
    for seed in range(200):
        _, text = captioned(seed)
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
def test_words_are_assigned_to_first_or_second_object(text, second):
    assert "".join("+" if word else "-" for word in second_object_words(text)) == second
