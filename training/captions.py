"""Captions of scenes, and the parser that reads them back.

`random_caption` writes one of many phrasings of a scene and may omit speed, size and background.
`parse_caption` returns what a caption says; a property that it does not mention is None. If a scene has two
objects, either may be named first, and captions do not say where they are.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import numpy as np

from training.scenes import Scene, SceneObject

SHAPE_WORDS = {
    "ball": ("ball", "circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
}
COLOUR_WORDS = {
    "red": ("red",),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
SPEED_WORDS = {"slow": ("slowly", "gently"), "fast": ("fast", "quickly", "rapidly")}
SPEED_ADJECTIVES = {"slow": "slow", "fast": "quick"}
BACKGROUND_WORDS = {"black": ("black",), "gray": ("gray", "grey"), "white": ("white",), "beige": ("beige",)}
BACKGROUND_NOUNS = ("ground", "background", "backdrop")
BACKGROUND_PREPOSITIONS = ("on", "over", "against", "in front of")
PREFIXES = ("", "", "", "a video of ", "we see ", "there is ")
DIRECTION_PHRASES = {
    "left": ("left", "to the left", "leftward"),
    "right": ("right", "to the right", "rightward"),
    "up": ("up", "upward", "to the top"),
    "down": ("down", "downward", "to the bottom"),
}
MOVING_PARTICIPLES = ("moving", "going", "drifting", "sliding", "travelling")
MOVING_VERBS = ("moves", "goes", "drifts", "slides", "travels")
MOTION_PARTICIPLES: Mapping[str, Sequence[str]] = {
    "still": ("standing still", "staying still", "not moving", "resting", "motionless"),
    "circling": ("circling", "going in circles", "moving in a circle", "orbiting"),
    "bouncing": ("bouncing", "bouncing up and down", "hopping", "jumping"),
    "growing": ("growing", "growing bigger", "getting bigger", "getting larger", "expanding"),
    "up": ("rising", "climbing"),
    "down": ("falling", "sinking"),
}
MOTION_VERBS: Mapping[str, Sequence[str]] = {
    "still": ("stands still", "stays still", "does not move", "rests"),
    "circling": ("circles", "goes in circles", "moves in a circle", "orbits"),
    "bouncing": ("bounces", "bounces up and down", "hops", "jumps"),
    "growing": ("grows", "grows bigger", "gets bigger", "gets larger", "expands"),
    "up": ("rises", "climbs"),
    "down": ("falls", "sinks"),
}
BACKGROUND_PATTERN = re.compile(
    rf"(?:{'|'.join(BACKGROUND_PREPOSITIONS)}) (?:a|the) "
    rf"([a-z ]*?)(?:{'|'.join(BACKGROUND_NOUNS)})( with stripes)?"
)
OBJECT_SEPARATOR = re.compile(r" and (?=a |the )")
CIRCLE_MOTION_PATTERN = re.compile(r"\b(?:moving|moves|going|goes) in (?:a circle|circles)")


@dataclass(frozen=True)
class ObjectDescription:
    """Hold the properties of one object; None if they are not known."""

    shape: str | None
    colour: str | None
    motion: str | None
    speed: str | None
    size: str | None


@dataclass(frozen=True)
class SceneDescription:
    """Hold the properties of the objects and of the background; None if they are not known."""

    objects: tuple[ObjectDescription, ...]
    background: str | None
    striped: bool | None


def random_caption(scene: Scene, random: np.random.Generator) -> str:
    """Return a random phrasing of a scene."""
    text = _objects_phrase(scene, random)
    if random.random() < 0.8:
        background = _background_phrase(scene, random)
        text = f"{background}, {text}" if random.random() < 0.3 else f"{text} {background}"
    text = str(random.choice(PREFIXES)) + text + str(random.choice(["", ".", "."]))
    style = random.random()
    return text.upper() if style < 0.05 else text.capitalize() if style < 0.7 else text


def parse_caption(text: str) -> SceneDescription:
    """Return what a caption says."""
    words = _normalise(text)
    background = BACKGROUND_PATTERN.search(words)
    words = BACKGROUND_PATTERN.sub(" ", words)
    objects = tuple(_parse_object(part) for part in OBJECT_SEPARATOR.split(words))
    if background is None:
        return SceneDescription(objects, None, None)
    words = f"{background[1]} {background[2] or ''}"
    return SceneDescription(objects, _find_property(BACKGROUND_WORDS, words), "stripe" in words)


def second_object_words(text: str) -> list[bool]:
    """Return for each word of a caption whether it belongs to the second of two objects."""
    words = _normalise(text)
    separator = OBJECT_SEPARATOR.search(words)
    num_first = len((words[: separator.start()] if separator else words).split())
    return [index >= num_first for index in range(len(words.split()))]


def matches(description: SceneDescription, scene: Scene) -> bool:
    """Check that the scene has every property that the description mentions."""
    names = [field.name for field in fields(ObjectDescription)]
    assignments = property_matches(description.objects, scene.objects, names)
    return (
        _is_consistent(description.background, scene.background)
        and _is_consistent(description.striped, scene.striped)
        and any(all(correct.values()) for correct in assignments)
    )


def property_matches(
    expected: Sequence[ObjectDescription],
    actual: Sequence[ObjectDescription | SceneObject],
    names: Sequence[str],
) -> list[dict[str, bool]]:
    """Compare described objects with actual ones, for each assignment of the ones to the others.

    Returns:
        For each assignment a dict from property name to whether all objects match in it. A property that is
        not described always matches. The list is empty if there are more or fewer objects than described.
    """
    if len(expected) != len(actual):
        return []
    return [
        {
            name: all(
                _is_consistent(getattr(a, name), getattr(b, name))
                for a, b in zip(expected, assignment, strict=True)
            )
            for name in names
        }
        for assignment in permutations(actual)
    ]


def vocabulary() -> list[str]:
    """Return every word that a caption may contain, sorted."""
    tables: list[Mapping[str, Sequence[str]]] = [
        *(SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, SPEED_WORDS, BACKGROUND_WORDS),
        *(DIRECTION_PHRASES, MOTION_PARTICIPLES, MOTION_VERBS),
    ]
    phrases = [phrase for table in tables for row in table.values() for phrase in row]
    phrases += [*BACKGROUND_NOUNS, *BACKGROUND_PREPOSITIONS, *PREFIXES]
    phrases += [*MOVING_PARTICIPLES, *MOVING_VERBS, *SPEED_ADJECTIVES.values()]
    phrases += ["a the and of to left right with stripes striped plain on one other"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def _objects_phrase(scene: Scene, random: np.random.Generator) -> str:
    phrases = [_object_phrase(obj, random) for obj in scene.objects]
    random.shuffle(phrases)
    return " and ".join(phrases)


def _object_phrase(obj: SceneObject, random: np.random.Generator) -> str:
    size = f"{_choice(SIZE_WORDS[obj.size], random)} " if random.random() < 0.7 else ""
    noun = f"{size}{_choice(COLOUR_WORDS[obj.colour], random)} {_choice(SHAPE_WORDS[obj.shape], random)}"
    article = "the" if random.random() < 0.2 else "a"
    speed = obj.speed if random.random() < 0.75 else None
    if speed and random.random() < 0.15:
        return f"{article} {SPEED_ADJECTIVES[speed]} {noun} {_motion_phrase(obj, random)}"
    adverb = _choice(SPEED_WORDS[speed], random) if speed else ""
    motion = _motion_phrase(obj, random)
    predicate = f"{adverb} {motion}" if random.random() < 0.5 else f"{motion} {adverb}"
    return f"{article} {noun} {predicate.strip()}"


def _motion_phrase(obj: SceneObject, random: np.random.Generator) -> str:
    use_verb = random.random() < 0.35
    phrases = (MOTION_VERBS if use_verb else MOTION_PARTICIPLES).get(obj.motion, ())
    if obj.motion in DIRECTION_PHRASES and (not phrases or random.random() < 0.6):
        moving = _choice(MOVING_VERBS if use_verb else MOVING_PARTICIPLES, random)
        return f"{moving} {_choice(DIRECTION_PHRASES[obj.motion], random)}"
    return _choice(phrases, random)


def _background_phrase(scene: Scene, random: np.random.Generator) -> str:
    colour, noun = _choice(BACKGROUND_WORDS[scene.background], random), _choice(BACKGROUND_NOUNS, random)
    preposition = _choice(BACKGROUND_PREPOSITIONS, random)
    if not scene.striped:
        return f"{preposition} a {'plain ' if random.random() < 0.4 else ''}{colour} {noun}"
    return f"{preposition} a " + _choice(
        (f"striped {colour} {noun}", f"{colour} striped {noun}", f"{colour} {noun} with stripes"), random
    )


def _choice(choices: Sequence[str], random: np.random.Generator) -> str:
    return choices[int(random.integers(len(choices)))]


def _normalise(text: str) -> str:
    return " ".join(text.lower().replace(",", " ").replace(".", " ").split())


def _parse_object(words: str) -> ObjectDescription:
    words = CIRCLE_MOTION_PATTERN.sub("circling", words)
    motions = (MOTION_PARTICIPLES, MOTION_VERBS, DIRECTION_PHRASES)
    speeds = {speed: (*SPEED_WORDS[speed], SPEED_ADJECTIVES[speed]) for speed in SPEED_WORDS}
    return ObjectDescription(
        shape=_find_property(SHAPE_WORDS, words),
        colour=_find_property(COLOUR_WORDS, words),
        motion=next((found for table in motions if (found := _find_property(table, words))), None),
        speed=_find_property(speeds, words),
        size=_find_property(SIZE_WORDS, words),
    )


def _is_consistent(expected: object, actual: object) -> bool:
    return expected is None or expected == actual


def _find_property(table: Mapping[str, Sequence[str]], words: str) -> str | None:
    """Return the property that has one of its phrases in the text."""
    for name, phrases in table.items():
        if any(re.search(rf"\b{phrase}\b", words) for phrase in phrases):
            return name
    return None
