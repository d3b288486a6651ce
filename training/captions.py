"""Scenes in words and back: a small grammar of many phrasings.

`caption` may leave out what need not be said (speed, size, ground); `read` gives a scene in which such
things are None. Training draws captions from here, quality looks at what is asked for. Of two things
either may be told first; where they are is not said.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import numpy as np

from training.world import Scene, Thing

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
GROUND_WORDS = {"black": ("black",), "gray": ("gray", "grey"), "white": ("white",), "beige": ("beige",)}
GROUND_NOUNS = ("ground", "background", "backdrop")
BEFORE_GROUND = ("on", "over", "against", "in front of")
OPENINGS = ("", "", "", "a video of ", "we see ", "there is ")
TOWARDS = {
    "left": ("left", "to the left", "leftward"),
    "right": ("right", "to the right", "rightward"),
    "up": ("up", "upward", "to the top"),
    "down": ("down", "downward", "to the bottom"),
}
GOING = ("moving", "going", "drifting", "sliding", "travelling")
GOES = ("moves", "goes", "drifts", "slides", "travels")
DOING: Mapping[str, Sequence[str]] = {
    "still": ("standing still", "staying still", "not moving", "resting", "motionless"),
    "circling": ("circling", "going in circles", "moving in a circle", "orbiting"),
    "bouncing": ("bouncing", "bouncing up and down", "hopping", "jumping"),
    "growing": ("growing", "growing bigger", "getting bigger", "getting larger", "expanding"),
    "up": ("rising", "climbing"),
    "down": ("falling", "sinking"),
}
DOES: Mapping[str, Sequence[str]] = {
    "still": ("stands still", "stays still", "does not move", "rests"),
    "circling": ("circles", "goes in circles", "moves in a circle", "orbits"),
    "bouncing": ("bounces", "bounces up and down", "hops", "jumps"),
    "growing": ("grows", "grows bigger", "gets bigger", "gets larger", "expands"),
    "up": ("rises", "climbs"),
    "down": ("falls", "sinks"),
}
GROUND = re.compile(
    rf"(?:{'|'.join(BEFORE_GROUND)}) (?:a|the) ([a-z ]*?)(?:{'|'.join(GROUND_NOUNS)})( with stripes)?"
)
BETWEEN = re.compile(r" and (?=a |the )")
CIRCLE_MOTION = re.compile(r"\b(?:moving|moves|going|goes) in (?:a circle|circles)")


@dataclass(frozen=True)
class Meaning:
    """What a caption says of a thing or the ground; None is not said."""

    shape: str | None
    colour: str | None
    motion: str | None
    speed: str | None
    size: str | None


@dataclass(frozen=True)
class Told:
    """What a caption says."""

    things: tuple[Meaning, ...]
    ground: str | None
    striped: bool | None


def caption(scene: Scene, random: np.random.Generator) -> str:
    """One of the many ways to describe a scene."""
    told = _things(scene, random)
    if random.random() < 0.8:
        ground = _ground(scene, random)
        told = f"{ground}, {told}" if random.random() < 0.3 else f"{told} {ground}"
    told = str(random.choice(OPENINGS)) + told + str(random.choice(["", ".", "."]))
    style = random.random()
    return told.upper() if style < 0.05 else told.capitalize() if style < 0.7 else told


def read(text: str) -> Told:
    """What a caption says."""
    words = _words(text)
    ground = GROUND.search(words)
    words = GROUND.sub(" ", words)
    things = tuple(_read_thing(part) for part in BETWEEN.split(words))
    if ground is None:
        return Told(things, None, None)
    said = f"{ground[1]} {ground[2] or ''}"
    return Told(things, _find(GROUND_WORDS, said), "stripe" in said)


def of_second_thing(text: str) -> list[bool]:
    """For each word of a caption, whether it is said where the second of two things is described."""
    words = _words(text)
    between = BETWEEN.search(words)
    num_first = len((words[: between.start()] if between else words).split())
    return [place >= num_first for place in range(len(words.split()))]


def agrees(told: Told, scene: Scene) -> bool:
    """Whether nothing that was told is otherwise in the scene."""
    of_ground = _fits(told.ground, scene.ground) and _fits(told.striped, scene.striped)
    names = [field.name for field in fields(Meaning)]
    return of_ground and any(all(right.values()) for right in rights(told.things, scene.things, names))


def rights(
    told: Sequence[Meaning], there: Sequence[Meaning | Thing], names: Sequence[str]
) -> list[dict[str, bool]]:
    """Which properties are as told, for each way to take what was told for the things that are there.

    No way at all, if those are more or fewer; what was not told is right.
    """
    if len(told) != len(there):
        return []
    return [
        {
            name: all(_fits(getattr(a, name), getattr(b, name)) for a, b in zip(told, order, strict=True))
            for name in names
        }
        for order in permutations(there)
    ]


def vocabulary() -> list[str]:
    """Every word that a caption can have."""
    tables: list[Mapping[str, Sequence[str]]]
    tables = [SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, SPEED_WORDS, GROUND_WORDS, TOWARDS, DOING, DOES]
    phrases = [phrase for table in tables for row in table.values() for phrase in row]
    phrases += [*GROUND_NOUNS, *BEFORE_GROUND, *OPENINGS, *GOING, *GOES, *SPEED_ADJECTIVES.values()]
    phrases += ["a the and of to left right with stripes striped plain on one other"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def _things(scene: Scene, random: np.random.Generator) -> str:
    told = [_thing(thing, random) for thing in scene.things]
    random.shuffle(told)
    return " and ".join(told)


def _thing(thing: Thing, random: np.random.Generator) -> str:
    size = f"{_any(SIZE_WORDS[thing.size], random)} " if random.random() < 0.7 else ""
    noun = f"{size}{_any(COLOUR_WORDS[thing.colour], random)} {_any(SHAPE_WORDS[thing.shape], random)}"
    article = "the" if random.random() < 0.2 else "a"
    speed = thing.speed if random.random() < 0.75 else None
    if speed and random.random() < 0.15:
        return f"{article} {SPEED_ADJECTIVES[speed]} {noun} {_motion(thing, random)}"
    adverb = _any(SPEED_WORDS[speed], random) if speed else ""
    motion = _motion(thing, random)
    told = f"{adverb} {motion}" if random.random() < 0.5 else f"{motion} {adverb}"
    return f"{article} {noun} {told.strip()}"


def _motion(thing: Thing, random: np.random.Generator) -> str:
    finite = random.random() < 0.35
    known = (DOES if finite else DOING).get(thing.motion, ())
    if thing.motion in TOWARDS and (not known or random.random() < 0.6):
        return f"{_any(GOES if finite else GOING, random)} {_any(TOWARDS[thing.motion], random)}"
    return _any(known, random)


def _ground(scene: Scene, random: np.random.Generator) -> str:
    tone, noun = _any(GROUND_WORDS[scene.ground], random), _any(GROUND_NOUNS, random)
    before = _any(BEFORE_GROUND, random)
    if not scene.striped:
        return f"{before} a {'plain ' if random.random() < 0.4 else ''}{tone} {noun}"
    return f"{before} a " + _any(
        (f"striped {tone} {noun}", f"{tone} striped {noun}", f"{tone} {noun} with stripes"), random
    )


def _any(choices: Sequence[str], random: np.random.Generator) -> str:
    return choices[int(random.integers(len(choices)))]


def _words(text: str) -> str:
    return " ".join(text.lower().replace(",", " ").replace(".", " ").split())


def _read_thing(words: str) -> Meaning:
    said = CIRCLE_MOTION.sub("circling", words)
    speeds = {speed: (*SPEED_WORDS[speed], SPEED_ADJECTIVES[speed]) for speed in SPEED_WORDS}
    return Meaning(
        shape=_find(SHAPE_WORDS, said),
        colour=_find(COLOUR_WORDS, said),
        motion=_find(DOING, said) or _find(DOES, said) or _find(TOWARDS, said),
        speed=_find(speeds, said),
        size=_find(SIZE_WORDS, said),
    )


def _fits(told: object, true: object) -> bool:
    return told is None or told == true


def _find(table: Mapping[str, Sequence[str]], words: str) -> str | None:
    """The property of which some word or phrase is among these words."""
    for name, phrases in table.items():
        if any(re.search(rf"\b{phrase}\b", words) for phrase in phrases):
            return name
    return None
