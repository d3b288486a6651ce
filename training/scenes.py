"""Synthetic scenes of the pocket dataset: one or two coloured shapes that move over a background.

A scene is drawn from a seeded random generator and rendered at any time and scale. The frame is a torus:
an object that leaves on one side comes back on the opposite side, so every motion can continue for ever.
Lengths are in pixels of the 64×96 frame and times in frames at 15 fps, whatever the scale of the rendering.
`training.captions` describes scenes in words; `training.recognition` recognises them in videos.
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
TWO_OBJECT_MOTIONS: tuple[Motion, ...] = ("still", "up", "down", "bouncing")
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
BACKGROUNDS = {"black": (0.06,) * 3, "gray": (0.5,) * 3, "white": (0.94,) * 3, "beige": (0.84, 0.76, 0.62)}

SPEED_PX_PER_FRAME = {"slow": 0.8, "fast": 1.6}
RADIUS_PX = {"small": 12.0, "big": 15.0}
# distance from the centre to the farthest point, for a shape with the area of a unit circle
EXTENT_FACTOR = {"ball": 1.0, "square": 0.89, "triangle": 1.56, "star": 1.54}
GROWTH_PX_PER_FRAME = {"slow": 0.4, "fast": 0.6}
MAX_RADIUS_PX = 20.0
ORBIT_PERIOD_FRAMES = {"slow": 24.0, "fast": 16.0}
ORBIT_RADIUS_PX = 10.0
BOUNCE_PERIOD_FRAMES = {"slow": 16.0, "fast": 10.0}
BOUNCE_HEIGHT_PX = 14.0
EDGE_WIDTH_PX = 3.0
STRIPE_PERIOD_PX, STRIPE_CONTRAST = 16, 0.08
TWO_OBJECT_SHARE = 0.2


@dataclass(frozen=True)
class SceneObject:
    """Describe one shape, its look and its motion. `speed` is None if it stands still."""

    shape: Shape
    colour: str
    motion: Motion
    speed: Speed | None
    size: Size


@dataclass(frozen=True)
class Scene:
    """Describe one object, or two (the first on the left), and the background."""

    objects: tuple[SceneObject, ...]
    background: str
    striped: bool


@dataclass(frozen=True)
class PlacedScene:
    """Add to a scene the (row, column) of each object's centre at time 0."""

    scene: Scene
    centres: tuple[tuple[float, float], ...]


def random_scene(random: np.random.Generator, two_object_share: float = TWO_OBJECT_SHARE) -> Scene:
    """Return a scene with uniform properties; two objects always have different colours."""
    num_objects = 2 if random.random() < two_object_share else 1
    objects = tuple(_random_object(random, allowed_motions(num_objects)) for _ in range(num_objects))
    if num_objects == 2 and objects[0].colour == objects[1].colour:
        return random_scene(random, two_object_share=1.0)
    return Scene(objects, str(random.choice(list(BACKGROUNDS))), bool(random.random() < 0.5))


def allowed_motions(num_objects: int) -> tuple[Motion, ...]:
    """Return the motions that each object may have in a scene with this many objects."""
    return MOTIONS if num_objects == 1 else TWO_OBJECT_MOTIONS


def with_motion(obj: SceneObject, motion: Motion, random: np.random.Generator) -> SceneObject:
    """Return the object with this motion and a random speed."""
    speed = SPEEDS[random.integers(2)]
    return replace(obj, motion=motion, speed=None if motion == "still" else speed)


def place(scene: Scene, random: np.random.Generator, num_frames: int = 17) -> PlacedScene:
    """Place the objects at random so that, if there is space, none crosses an edge in `num_frames` frames."""
    columns = [(0.0, float(WIDTH))]
    if len(scene.objects) == 2:
        columns = [(0.0, WIDTH / 2), (WIDTH / 2, float(WIDTH))]
    pairs = zip(scene.objects, columns, strict=True)
    centres = (_random_centre(obj, bounds, random, num_frames) for obj, bounds in pairs)
    return PlacedScene(scene, tuple(centres))


def draw(
    placed: PlacedScene, times: Float[Tensor, " n"], scale: int = 1
) -> Float[Tensor, "n height width 3"]:
    """Render the frames at these times, in [0, 1]; `scale` multiplies height and width."""
    frames = draw_background(placed.scene, scale).expand(len(times), -1, -1, -1)
    for obj, centre in zip(placed.scene.objects, placed.centres, strict=True):
        alpha = coverage(obj.shape, *trajectory(obj, centre, times), scale)[..., None]
        frames = frames * (1 - alpha) + torch.tensor(COLOURS[obj.colour]) * alpha
    return frames


def draw_background(scene: Scene, scale: int = 1) -> Float[Tensor, "height width 3"]:
    """Render the background alone. Stripes are horizontal, a dark one above a light one."""
    tone = torch.tensor(BACKGROUNDS[scene.background]).expand(HEIGHT * scale, WIDTH * scale, 3)
    if not scene.striped:
        return tone
    phase = (torch.arange(HEIGHT * scale) + 0.5) / (STRIPE_PERIOD_PX * scale) * 2 * torch.pi
    return (tone - STRIPE_CONTRAST * phase.sin()[:, None, None]).clamp(0, 1)


def trajectory(
    obj: SceneObject, centre: tuple[float, float], times: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the row and column of the centre and the radius, in pixels, at each time."""
    row, column = (torch.full_like(times, value) for value in centre)
    radius = torch.full_like(times, RADIUS_PX[obj.size])
    speed = obj.speed or "slow"
    match obj.motion:
        case "left" | "right":
            column = column + SPEED_PX_PER_FRAME[speed] * times * (1 if obj.motion == "right" else -1)
        case "up" | "down":
            row = row + SPEED_PX_PER_FRAME[speed] * times * (1 if obj.motion == "down" else -1)
        case "circling":
            angle = times / ORBIT_PERIOD_FRAMES[speed] * 2 * torch.pi
            row, column = row + ORBIT_RADIUS_PX * angle.sin(), column + ORBIT_RADIUS_PX * angle.cos()
        case "bouncing":
            phase = (times / BOUNCE_PERIOD_FRAMES[speed]) % 1
            row = row - BOUNCE_HEIGHT_PX * 4 * phase * (1 - phase)
        case "growing":
            radius = (0.75 * radius + GROWTH_PX_PER_FRAME[speed] * times).clamp(max=MAX_RADIUS_PX)
        case "still":
            pass
    return row, column, radius


def signed_distance(
    shape: Shape, y: Float[Tensor, "*rest"], x: Float[Tensor, "*rest"]
) -> Float[Tensor, "*rest"]:
    """Return the distance to the outline of a shape around the origin, negative inside.

    All shapes have the area of the unit circle.
    """
    radius = (y.square() + x.square()).sqrt()
    if shape == "ball":
        return radius - 1
    corners, turn, inner = {"square": (4, 0.5, None), "triangle": (3, 0.0, None), "star": (5, 0.0, 0.45)}[
        shape
    ]
    half = math.pi / corners
    inner = inner or math.cos(half)  # radius half way between two corners, relative to the corner radius
    outer = math.sqrt(math.pi / (corners * inner * math.sin(half)))
    angle = ((torch.atan2(x, -y) + (1 + 2 * turn) * half) % (2 * half) - half).abs()
    u, v = radius * angle.cos() - outer, radius * angle.sin()  # relative to the nearest corner, by symmetry
    along, across = inner * outer * math.cos(half) - outer, inner * outer * math.sin(half)
    nearest = ((u * along + v * across) / (along**2 + across**2)).clamp(0, 1)  # position along the edge
    distance = ((u - nearest * along).square() + (v - nearest * across).square()).sqrt()
    return torch.where(along * v - across * u > 0, -distance, distance)


def coverage(
    shape: Shape,
    row: Float[Tensor, " n"],
    column: Float[Tensor, " n"],
    radius: Float[Tensor, " n"],
    scale: int = 1,
) -> Float[Tensor, "n height width"]:
    """Return the share of each pixel that a shape covers, with a soft edge, on the torus."""
    y = (torch.arange(HEIGHT * scale) + 0.5) / scale - row[:, None]
    x = (torch.arange(WIDTH * scale) + 0.5) / scale - column[:, None]
    y, x = (y + HEIGHT / 2) % HEIGHT - HEIGHT / 2, (x + WIDTH / 2) % WIDTH - WIDTH / 2
    radius = radius[:, None, None]
    distance = radius * signed_distance(shape, y[:, :, None] / radius, x[:, None, :] / radius)
    return (0.5 - distance * scale / EDGE_WIDTH_PX).clamp(0, 1)


def _random_object(random: np.random.Generator, motions: tuple[Motion, ...]) -> SceneObject:
    motion = motions[random.integers(len(motions))]
    return SceneObject(
        shape=SHAPES[random.integers(len(SHAPES))],
        colour=list(COLOURS)[random.integers(len(COLOURS))],
        motion=motion,
        speed=None if motion == "still" else SPEEDS[random.integers(2)],
        size=SIZES[random.integers(2)],
    )


def _random_centre(
    obj: SceneObject, columns: tuple[float, float], random: np.random.Generator, num_frames: int
) -> tuple[float, float]:
    rows, cols, radius = trajectory(obj, (0.0, 0.0), torch.arange(float(num_frames)))
    reach = EXTENT_FACTOR[obj.shape] * radius + EDGE_WIDTH_PX / 2
    return (
        _random_offset(rows - reach, rows + reach, (0.0, float(HEIGHT)), random),
        _random_offset(cols - reach, cols + reach, columns, random),
    )


def _random_offset(
    low: Float[Tensor, " n"],
    high: Float[Tensor, " n"],
    bounds: tuple[float, float],
    random: np.random.Generator,
) -> float:
    first, last = bounds[0] - float(low.min()), bounds[1] - float(high.max())
    return float(random.uniform(first, last)) if first < last else (first + last) / 2
