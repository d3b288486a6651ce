"""Trials of a checkpoint of the pocket world: which films are ordered, and what is seen in them.

`training.quality` runs them and makes the table. A trial follows from its number alone, and training saw none
of them. Scores have their unit in their name; of those in pixels and levels (of 255) less is better.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from model.io.pixels import resized, to_uint8
from model.spec.shapes import Size
from training.captions import COLOUR_WORDS, Told, caption, read, rights
from training.judge import coloured, look, regions
from training.world import FPS, HEIGHT, WIDTH, Placed, draw, place, random_scene

SEED = 1_000_003  # far from those that training draws from
PROPERTIES = ("colour", "shape", "motion", "count")
NUM_FRAMES, HELD_FRAMES = 17, 5
EIGHT_SECONDS = 10  # segments, of 125 frames in all
EDGE = 5  # pixels, odd: so wide is the seam of a thing that counts as neither it nor the ground

Film = Float[Tensor, "n height width 3"]
Rights = Mapping[str, bool]
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """A caption, the scene that it tells of, and the seed of the film."""

    told: str
    placed: Placed
    seed: int

    @classmethod
    def number(cls, index: int) -> "Trial":
        """The trial of this number."""
        random = np.random.default_rng((SEED, index))
        scene = random_scene(random)
        told = caption(scene, random)
        return cls(told, place(scene, random, NUM_FRAMES), index)


@dataclass(frozen=True)
class Order:
    """A film to be made: its prompt, and what it begins with, if anything."""

    told: str
    image: UInt8[Tensor, "height width 3"] | None = None
    video: UInt8[Tensor, "n height2 width2 3"] | None = None
    num_segments: int = 1


@dataclass(frozen=True)
class Task:
    """What is ordered in a trial, and what is right, and how good, in the films that come.

    `time`, if any, is the name of a score: seconds for a film.
    """

    orders: Callable[[Trial], list[Order]]
    judge: Callable[[Trial, list[Film]], tuple[Rights, Scores]]
    time: str = ""


def judged(told: Told, seen: Told) -> dict[str, bool]:
    """Which properties of what was told are seen, of two things by the better of both ways to take them."""
    ways = rights(told.things, seen.things, PROPERTIES[:3])
    if not ways:
        return dict.fromkeys(PROPERTIES, False)
    best = max(ways, key=lambda way: sum(way.values()))
    return {**best, "count": True}


def fps_of(film: Film) -> int:
    """Frames a second: refinement doubles them, as it doubles the sides."""
    return FPS * (film.shape[1] // HEIGHT)


def recoloured(told: str) -> str:
    """The caption with another colour for its first thing: blue, or what is not there yet."""
    known = [thing.colour for thing in read(told).things]
    new = next(colour for colour in ("blue", "red", "green") if colour not in known)
    words = "|".join(COLOUR_WORDS[known[0] or new])
    return re.sub(
        rf"\b({words})\b", lambda old: new.upper() if old[0].isupper() else new, told, flags=re.IGNORECASE
    )


def _by_text(trial: Trial) -> list[Order]:
    return [Order(trial.told)]


def _judge_text(trial: Trial, films: list[Film]) -> tuple[Rights, Scores]:
    right = _right(trial.told, films[0])
    return right, {f"{name}, %": 100.0 * right[name] for name in PROPERTIES}


def _by_text_at_length(trial: Trial) -> list[Order]:
    return [Order(trial.told, num_segments=EIGHT_SECONDS)]


def _judge_length(trial: Trial, films: list[Film]) -> tuple[Rights, Scores]:
    right = _right(trial.told, films[0])
    return right, {"8 s all right, %": 100.0 * all(right.values())}


def _by_image(trial: Trial) -> list[Order]:
    """The scene's first frame, large enough for refinement."""
    return [Order(trial.told, image=to_uint8(draw(trial.placed, torch.zeros(1), scale=2))[0])]


def _judge_image(trial: Trial, films: list[Film]) -> tuple[Rights, Scores]:
    (order,) = _by_image(trial)
    assert order.image is not None
    first = films[0][0]
    given = resized(order.image[None], Size(*first.shape[:2]))[0].float() / 255
    psnr_db = -10 * math.log10(float((first - given).square().mean()))
    return _right(trial.told, films[0]), {"first frame, dB": psnr_db}


def _by_clip(trial: Trial) -> list[Order]:
    """As many frames of the scene as a continuation is held to."""
    return [Order(trial.told, video=to_uint8(draw(trial.placed, torch.arange(float(HELD_FRAMES)))))]


def _judge_continuation(trial: Trial, films: list[Film]) -> tuple[Rights, Scores]:
    (frames,) = films
    right = _right(trial.told, frames)
    times = torch.linspace(0, NUM_FRAMES - 1, len(frames))
    join = int((times < HELD_FRAMES).sum())
    true = regions(draw(trial.placed, times[join : join + 1]))[0]
    seen = regions(frames[join : join + 1])[0]
    far = float(WIDTH + HEIGHT) / 2
    apart = [
        min((_apart(a.row, b.row, HEIGHT) + _apart(a.column, b.column, WIDTH) for b in seen), default=far)
        for a in true
    ]
    return right, {"join error, px": float(np.mean(apart)), "same motion, %": 100.0 * right["motion"]}


def _by_two_texts(trial: Trial) -> list[Order]:
    return [Order(trial.told), Order(recoloured(trial.told))]


def _judge_word(trial: Trial, films: list[Film]) -> tuple[Rights, Scores]:
    before, after = films
    things = [coloured(film) for film in films]
    either = things[0] | things[1]
    ground = F.max_pool2d(either.float()[:, None], EDGE, 1, EDGE // 2)[:, 0] == 0
    elsewhere = 255 * float((before - after).abs().mean(-1)[ground].mean())
    in_place = 100 * float((things[0] & things[1]).sum() / either.sum().clamp(min=1))
    right = _right(recoloured(trial.told), after)
    scores = {
        "recoloured, %": 100.0 * right["colour"],
        "in place, %": in_place,
        "elsewhere, levels": elsewhere,
    }
    return right, scores


def _right(told: str, film: Film) -> dict[str, bool]:
    return judged(read(told), look(film, fps_of(film)))


def _apart(a: float, b: float, around: int) -> float:
    return abs((a - b + around / 2) % around - around / 2)


TASKS = {
    "text to video": Task(_by_text, _judge_text, time="film, s"),
    "image to video": Task(_by_image, _judge_image),
    "continuation": Task(_by_clip, _judge_continuation),
    "one word changed": Task(_by_two_texts, _judge_word),
    "long video": Task(_by_text_at_length, _judge_length, time="8 s film, s"),
}
