"""The pocket world: one or two coloured shapes that move over a plain or striped ground.

`training.captions` puts its scenes into words, the training stages draw clips of them, `training.judge`
looks at videos of it. Everything follows from a seed. The world is a torus: what leaves on one side comes
back on the other, so every motion goes on for as long as one looks. Lengths are in pixels of the
64×96 frame, times in frames at 15 a second; a clip may be drawn at another scale or frame rate.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Shape = Literal["ball", "square", "triangle", "star"]
Motion = Literal["still", "left", "right", "up", "down", "circling", "bouncing", "growing"]
Speed = Literal["slow", "fast"]
Size = Literal["small", "big"]

HEIGHT, WIDTH, FPS = 64, 96, 15
SHAPES: tuple[Shape, ...] = ("ball", "square", "triangle", "star")
MOTIONS: tuple[Motion, ...] = ("still", "left", "right", "up", "down", "circling", "bouncing", "growing")
MOTIONS_IN_A_PAIR: tuple[Motion, ...] = ("still", "up", "down", "bouncing")
SPEEDS: tuple[Speed, ...] = ("slow", "fast")
SIZES: tuple[Size, ...] = ("small", "big")
COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.75, 0.15),
    "blue": (0.10, 0.20, 0.95),
    "yellow": (0.95, 0.90, 0.10),
    "purple": (0.75, 0.10, 0.85),
    "cyan": (0.10, 0.85, 0.90),
}
GROUNDS = {"black": (0.06,) * 3, "gray": (0.5,) * 3, "white": (0.94,) * 3, "beige": (0.84, 0.76, 0.62)}

SPEED_PX = {"slow": 0.8, "fast": 1.6}
RADIUS_PX = {"small": 12.0, "big": 15.0}
# of a shape as large as a ball of radius 1
EXTENT = {"ball": 1.0, "square": 0.89, "triangle": 1.56, "star": 1.54}
GROWTH_PX = {"slow": 0.4, "fast": 0.6}
LARGEST_PX = 20.0
TURN_FRAMES = {"slow": 24.0, "fast": 16.0}
ORBIT_PX = 10.0
HOP_FRAMES = {"slow": 16.0, "fast": 10.0}
HOP_PX = 14.0
EDGE_PX = 3.0
STRIPE_PX, STRIPE_CONTRAST = 16, 0.08
PAIR_SHARE = 0.2


@dataclass(frozen=True)
class Thing:
    """One shape and what it does. A still one has no speed."""

    shape: Shape
    colour: str
    motion: Motion
    speed: Speed | None
    size: Size


@dataclass(frozen=True)
class Scene:
    """One thing, or two: the first on the left."""

    things: tuple[Thing, ...]
    ground: str
    striped: bool


@dataclass(frozen=True)
class Placed:
    """Where the things of a scene are at time 0: rows and columns of their centres."""

    scene: Scene
    centres: tuple[tuple[float, float], ...]


def random_scene(random: np.random.Generator, pair_share: float = PAIR_SHARE) -> Scene:
    """A scene with every property drawn evenly; two things of different colours in so many."""
    count = 2 if random.random() < pair_share else 1
    things = tuple(_random_thing(random, motions_of(count)) for _ in range(count))
    if count == 2 and things[0].colour == things[1].colour:
        return random_scene(random, pair_share=1.0)
    return Scene(things, str(random.choice(list(GROUNDS))), bool(random.random() < 0.5))


def motions_of(count: int) -> tuple[Motion, ...]:
    """What each of so many things may do."""
    return MOTIONS if count == 1 else MOTIONS_IN_A_PAIR


def moving(thing: Thing, motion: Motion, random: np.random.Generator) -> Thing:
    """The same thing, doing this at any speed."""
    speed = SPEEDS[random.integers(2)]
    return replace(thing, motion=motion, speed=None if motion == "still" else speed)


def place(scene: Scene, random: np.random.Generator, num_frames: int = 17) -> Placed:
    """Put a scene's things where nothing crosses an edge in so many frames, as far as that can be."""
    halves = (
        [(0.0, float(WIDTH))] if len(scene.things) == 1 else [(0.0, WIDTH / 2), (WIDTH / 2, float(WIDTH))]
    )
    centres = (_centre(*pair, random, num_frames) for pair in zip(scene.things, halves, strict=True))
    return Placed(scene, tuple(centres))


def draw(placed: Placed, times: Float[Tensor, " n"], scale: int = 1) -> Float[Tensor, "n height width 3"]:
    """Frames at these times, in [0, 1], each side `scale` times as large."""
    frames = ground_of(placed.scene, scale).expand(len(times), -1, -1, -1)
    for thing, centre in zip(placed.scene.things, placed.centres, strict=True):
        share = cover(thing.shape, *path(thing, centre, times), scale)[..., None]
        frames = frames * (1 - share) + torch.tensor(COLOURS[thing.colour]) * share
    return frames


def ground_of(scene: Scene, scale: int = 1) -> Float[Tensor, "height width 3"]:
    """The ground alone; stripes lie across, a dark one above a light one."""
    tone = torch.tensor(GROUNDS[scene.ground]).expand(HEIGHT * scale, WIDTH * scale, 3)
    if not scene.striped:
        return tone
    phase = (torch.arange(HEIGHT * scale) + 0.5) / (STRIPE_PX * scale) * 2 * torch.pi
    return (tone - STRIPE_CONTRAST * phase.sin()[:, None, None]).clamp(0, 1)


def path(
    thing: Thing, centre: tuple[float, float], times: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Row and column of the centre, and the radius, at each time."""
    row, column = (torch.full_like(times, value) for value in centre)
    radius = torch.full_like(times, RADIUS_PX[thing.size])
    speed = thing.speed or "slow"
    match thing.motion:
        case "left" | "right":
            column = column + SPEED_PX[speed] * times * (1 if thing.motion == "right" else -1)
        case "up" | "down":
            row = row + SPEED_PX[speed] * times * (1 if thing.motion == "down" else -1)
        case "circling":
            angle = times / TURN_FRAMES[speed] * 2 * torch.pi
            row, column = row + ORBIT_PX * angle.sin(), column + ORBIT_PX * angle.cos()
        case "bouncing":
            hop = (times / HOP_FRAMES[speed]) % 1
            row = row - HOP_PX * 4 * hop * (1 - hop)
        case "growing":
            radius = (0.75 * radius + GROWTH_PX[speed] * times).clamp(max=LARGEST_PX)
        case "still":
            pass
    return row, column, radius


def distance_to(shape: Shape, y: Float[Tensor, "*rest"], x: Float[Tensor, "*rest"]) -> Float[Tensor, "*rest"]:
    """Distance to the edge of a shape of area pi around its centre, negative inside."""
    reach = (y.square() + x.square()).sqrt()
    if shape == "ball":
        return reach - 1
    corners, turn, inner = {"square": (4, 0.5, None), "triangle": (3, 0.0, None), "star": (5, 0.0, 0.45)}[
        shape
    ]
    half = math.pi / corners
    inner = inner or math.cos(half)  # radius of what lies between two corners, to the corners' radius
    outer = math.sqrt(math.pi / (corners * inner * math.sin(half)))
    angle = ((torch.atan2(x, -y) + (1 + 2 * turn) * half) % (2 * half) - half).abs()
    u, v = reach * angle.cos() - outer, reach * angle.sin()  # from the nearest corner, edges folded together
    along, across = inner * outer * math.cos(half) - outer, inner * outer * math.sin(half)
    share = ((u * along + v * across) / (along**2 + across**2)).clamp(0, 1)
    away = ((u - share * along).square() + (v - share * across).square()).sqrt()
    return torch.where(along * v - across * u > 0, -away, away)


def cover(
    shape: Shape,
    row: Float[Tensor, " n"],
    column: Float[Tensor, " n"],
    radius: Float[Tensor, " n"],
    scale: int = 1,
) -> Float[Tensor, "n height width"]:
    """How much of each pixel a shape covers; its edge is soft, and it goes around the torus."""
    y = (torch.arange(HEIGHT * scale) + 0.5) / scale - row[:, None]
    x = (torch.arange(WIDTH * scale) + 0.5) / scale - column[:, None]
    y, x = (y + HEIGHT / 2) % HEIGHT - HEIGHT / 2, (x + WIDTH / 2) % WIDTH - WIDTH / 2
    radius = radius[:, None, None]
    distance = radius * distance_to(shape, y[:, :, None] / radius, x[:, None, :] / radius)
    return (0.5 - distance * scale / EDGE_PX).clamp(0, 1)


def _random_thing(random: np.random.Generator, motions: tuple[Motion, ...]) -> Thing:
    motion = motions[random.integers(len(motions))]
    return Thing(
        shape=SHAPES[random.integers(len(SHAPES))],
        colour=list(COLOURS)[random.integers(len(COLOURS))],
        motion=motion,
        speed=None if motion == "still" else SPEEDS[random.integers(2)],
        size=SIZES[random.integers(2)],
    )


def _centre(
    thing: Thing, columns: tuple[float, float], random: np.random.Generator, num_frames: int
) -> tuple[float, float]:
    rows, cols, radius = path(thing, (0.0, 0.0), torch.arange(float(num_frames)))
    reach = EXTENT[thing.shape] * radius + EDGE_PX / 2
    return (
        _within(rows - reach, rows + reach, (0.0, float(HEIGHT)), random),
        _within(cols - reach, cols + reach, columns, random),
    )


def _within(
    low: Float[Tensor, " n"],
    high: Float[Tensor, " n"],
    room: tuple[float, float],
    random: np.random.Generator,
) -> float:
    first, last = room[0] - float(low.min()), room[1] - float(high.max())
    return float(random.uniform(first, last)) if first < last else (first + last) / 2
