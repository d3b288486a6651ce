"""Looks at a video of the pocket world and says what it shows, without any neural network.

`training.quality` and the tests call `look`. It finds coloured pixels, the regions that they form, and how
these move, and answers in the same terms in which `training.captions.read` understands a caption. Sizes are
measured in pixels of the 64×96 frame, whatever the video's size. The world is a torus, and so it is here.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from training.captions import Meaning, Told
from training.world import COLOURS, FPS, GROUNDS, HEIGHT, SHAPES, WIDTH, Shape, cover

CHROMA = 0.4  # a pixel of a thing differs by so much between its strongest and weakest colour
LEAST_AREA = 60.0
STILL_PX, GROWTH, STRAIGHTNESS, ROUNDNESS = 0.25, 0.035, 0.75, 0.35
FAST_PX = 1.2
WHOLE_ACT = 16  # steps in which every motion has gone as far from still as it has to
STRIPES = 0.02
TEMPLATES = 5  # frames of which the shape is judged
STRETCHES = (1.0, 1.12, 1.25)  # a blurred thing is larger than its coloured pixels
AROUND = 1.9  # radii in which a thing is compared with templates; a star's points are within
BRIGHTEST = 0.3  # share of a thing's pixels that tells its full colour

Frames = Float[Tensor, "n height width 3"]
Frame = Float[Tensor, "height width 3"]
Mask = Bool[Tensor, "height width"]


@dataclass(frozen=True)
class Region:
    """A connected region of one colour in one frame: its centre, and area in 64×96 pixels."""

    colour: str
    row: float
    column: float
    area: float


def look(frames: Frames, fps: int = FPS) -> Told:
    """What a video in [0, 1] shows: things from left to right. A property that cannot be told is None."""
    frames = _small(frames[:: fps // FPS])
    seen = regions(frames)
    count = Counter(len(things) for things in seen).most_common(1)[0][0]
    colours = Counter(region.colour for things in seen for region in things).most_common(count)
    tracks = [[_largest(things, colour) for things in seen] for colour, _ in colours]
    things = [(track, _thing(track, frames)) for track in tracks]
    things.sort(key=lambda thing: next(region.column for region in thing[0] if region))
    ground, striped = _ground(frames)
    return Told(tuple(thing for _, thing in things), ground, striped)


def regions(frames: Frames) -> list[list[Region]]:
    """For each frame, connected regions of coloured pixels that are large enough to be things."""
    frames = _small(frames)
    labels = _connected(coloured(frames))
    return [list(_regions(*pair)) for pair in zip(frames, labels, strict=True)]


def coloured(frames: Frames) -> Bool[Tensor, "n height width"]:
    """Which pixels are a thing's: the grounds have hardly any colour."""
    return _chroma(frames) > CHROMA


def motion(track: list[Region | None]) -> tuple[str | None, str | None]:
    """What a thing does, and how fast where that can be told, from its regions over time."""
    present = [region for region in track if region]
    steps = min(len(track) - 1, WHOLE_ACT)
    if len(present) < 0.75 * len(track) or steps < 4:
        return None, None
    rows = _smooth(_unwrapped([region.row for region in present], HEIGHT))
    columns = _smooth(_unwrapped([region.column for region in present], WIDTH))
    areas = _smooth(torch.tensor([region.area for region in present]))
    if float(areas[-1] / areas[0]) > 1 + GROWTH * steps:
        return "growing", None
    tall, wide = float(rows.max() - rows.min()), float(columns.max() - columns.min())
    if max(tall, wide) < STILL_PX * steps:
        return "still", None
    down, right = float(rows[-1] - rows[0]), float(columns[-1] - columns[0])
    way = float(torch.hypot(rows.diff(), columns.diff()).sum())
    if math.hypot(down, right) > STRAIGHTNESS * way:
        speed = "fast" if way / (len(rows) - 1) > FAST_PX else "slow"
        if abs(down) > abs(right):
            return ("down" if down > 0 else "up"), speed
        return ("right" if right > 0 else "left"), speed
    return ("circling" if min(tall, wide) > ROUNDNESS * max(tall, wide) else "bouncing"), None


def shape(track: list[Region | None], frames: Frames) -> str | None:
    """The shape that looks most like a thing, drawn about as large and where the thing is."""
    errors = dict.fromkeys(SHAPES, 0.0)
    present = [(region, frame) for region, frame in zip(track, frames, strict=True) if region]
    for region, frame in present:
        share, near = _share(region, frame)
        for name in SHAPES:
            errors[name] += min(_unlike(name, stretch, region, share, near) for stretch in STRETCHES)
    return min(errors, key=lambda name: errors[name]) if present else None


def _small(frames: Frames) -> Frames:
    """The same at 64×96; larger ones are averaged."""
    scale = frames.shape[1] // HEIGHT
    return frames.unflatten(2, (-1, scale)).unflatten(1, (-1, scale)).mean((2, 4))


def _thing(track: list[Region | None], frames: Frames) -> Meaning:
    every = max(1, len(track) // TEMPLATES)
    doing, speed = motion(track)
    colour = next(region.colour for region in track if region)
    return Meaning(shape(track[::every], frames[::every]), colour, doing, speed, None)


def _share(region: Region, frame: Frame) -> tuple[Float[Tensor, "height width"], Mask]:
    """How much of each pixel a thing seems to cover, and which pixels are near it."""
    near = _template("ball", AROUND, region) > 0.5
    chroma = _chroma(frame)
    full = chroma[near].topk(max(1, int(BRIGHTEST * region.area))).values.mean()
    return (chroma / full).clamp(0, 1), near


def _unlike(
    name: Shape, stretch: float, region: Region, share: Float[Tensor, "height width"], near: Mask
) -> float:
    return float((_template(name, stretch, region) - share)[near].square().sum() / region.area)


def _template(name: Shape, stretch: float, region: Region) -> Float[Tensor, "height width"]:
    row, column = torch.tensor([region.row]), torch.tensor([region.column])
    return cover(name, row, column, torch.tensor([stretch * math.sqrt(region.area / math.pi)]))[0]


def _regions(
    frame: Float[Tensor, "height width 3"], labels: Float[Tensor, "height width"]
) -> Iterator[Region]:
    """The regions of one frame, given the number of each pixel's."""
    for label in set(labels[labels > 0].tolist()):
        mask = labels == label
        if (area := float(mask.sum())) >= LEAST_AREA:
            yield Region(_colour(frame[mask]), *_centre(mask), area)


def _connected(mask: Bool[Tensor, "n height width"]) -> Float[Tensor, "n height width"]:
    """The same number for all pixels of a region, 0 outside; numbers spread until nothing changes."""
    labels = torch.arange(1.0, mask[0].numel() + 1).view(mask[0].shape) * mask
    while True:
        after = _along_rows(_along_rows(labels, mask).mT, mask.mT).mT
        if torch.equal(after, labels):
            return labels
        labels = after


def _along_rows(labels: Float[Tensor, "n h w"], mask: Bool[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """The largest number of each run of pixels in a row; what ends on the right goes on on the left."""
    begins = mask & ~mask.roll(1, -1)
    run = begins.cumsum(-1) % begins.sum(-1, keepdim=True).clamp(min=1)
    largest = torch.zeros_like(labels).scatter_reduce(-1, run, labels, "amax")
    return largest.gather(-1, run) * mask


def _colour(pixels: Float[Tensor, "n 3"]) -> str:
    """The named colour nearest in hue to the most coloured half of some pixels."""
    chroma = _chroma(pixels)
    mean = pixels[chroma >= chroma.median()].mean(0)
    names = list(COLOURS)
    hues = torch.stack([_hue(torch.tensor(COLOURS[name])) for name in names])
    return names[int((hues @ _hue(mean)).argmax())]


def _hue(colour: Float[Tensor, "3"]) -> Float[Tensor, "3"]:
    return F.normalize(colour - colour.mean(), dim=0)


def _chroma(x: Float[Tensor, "*rest 3"]) -> Float[Tensor, "*rest"]:
    return x.amax(-1) - x.amin(-1)


def _centre(mask: Mask) -> tuple[float, float]:
    """Row and column of the centre of gravity on the torus."""
    rows, columns = mask.nonzero().float().T
    return _round_mean(rows, HEIGHT), _round_mean(columns, WIDTH)


def _round_mean(places: Float[Tensor, " n"], around: int) -> float:
    angles = (places + 0.5) / around * 2 * torch.pi
    near = float(torch.atan2(angles.sin().mean(), angles.cos().mean())) / (2 * math.pi) * around
    offsets = (places + 0.5 - near + around / 2) % around - around / 2
    return (near + float(offsets.mean())) % around


def _unwrapped(places: list[float], around: int) -> Float[Tensor, " n"]:
    """Without the jumps of a thing that left on one side and came back on the other."""
    x = torch.tensor(places)
    steps = (x.diff() + around / 2) % around - around / 2
    return torch.cat([x[:1], x[:1] + steps.cumsum(0)])


def _smooth(x: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    return F.avg_pool1d(x[None], 3, 1)[0]


def _largest(things: list[Region], colour: str) -> Region | None:
    return max(
        (thing for thing in things if thing.colour == colour), key=lambda thing: thing.area, default=None
    )


def _ground(frames: Frames) -> tuple[str, bool]:
    """The tone nearest to the ground's, and whether its rows differ."""
    plain = ~coloured(frames)
    rows = torch.stack([frames[:, row][plain[:, row]].median(0).values for row in range(frames.shape[1])])
    tone = rows.nanmean(0)
    ground = min(GROUNDS, key=lambda name: float((tone - torch.tensor(GROUNDS[name])).abs().sum()))
    return ground, float(rows.mean(-1).nan_to_num(float(tone.mean())).std()) > STRIPES
