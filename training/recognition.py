"""Recognise what a video of the pocket dataset shows, without a neural network.

`recognise` segments coloured pixels into regions, follows each region through time, and classifies its shape,
colour and motion. It returns the same type as `training.captions.parse_caption`, so that a video can be
compared with its caption. Lengths are in pixels of the 64×96 frame, whatever the size of the video. Like
the scenes, all computations treat the frame as a torus.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from training.captions import ObjectDescription, SceneDescription
from training.scenes import BACKGROUNDS, COLOURS, FPS, HEIGHT, SHAPES, WIDTH, Shape, coverage

MIN_CHROMA = 0.4  # of an object's pixels; chroma is the strongest minus the weakest colour channel
MIN_AREA_PX = 60.0
STILL_PX_PER_STEP, FAST_PX_PER_STEP = 0.25, 1.2
GROWTH_PER_STEP = 0.035  # of the area, relative to the first
MIN_STRAIGHTNESS = 0.75  # of a straight motion: distance from start to end, relative to the path length
MIN_ROUNDNESS = 0.35  # of a circle: the shorter side of its bounding box, relative to the longer
MAX_THRESHOLD_STEPS = 16  # thresholds stop growing here: by then every motion is far from standing still
MIN_STRIPE_STD = 0.02
NUM_SHAPE_FRAMES = 5  # frames from which the shape is recognised
TEMPLATE_SCALES = (1.0, 1.12, 1.25)  # a blurred object is larger than its coloured pixels
NEIGHBOURHOOD_RADII = 1.9  # where an object is compared with templates; includes the points of a star
FULL_COLOUR_SHARE = 0.3  # share of an object's pixels, the most coloured ones, that define full coverage

Frames = Float[Tensor, "n height width 3"]
Frame = Float[Tensor, "height width 3"]
Mask = Bool[Tensor, "height width"]


@dataclass(frozen=True)
class Region:
    """Describe a connected region of one colour in one frame. Lengths and area are in 64×96 pixels."""

    colour: str
    row: float
    column: float
    area: float


def recognise(frames: Frames, fps: int = FPS) -> SceneDescription:
    """Describe what a video with values in [0, 1] shows, objects from left to right.

    A property that cannot be recognised is None.
    """
    frames = _downsample(frames[:: fps // FPS])
    found = find_regions(frames)
    count = Counter(len(regions) for regions in found).most_common(1)[0][0]
    colours = Counter(region.colour for regions in found for region in regions).most_common(count)
    tracks = [[_largest_region(regions, colour) for regions in found] for colour, _ in colours]
    objects = [(track, _describe_object(track, frames)) for track in tracks]
    objects.sort(key=lambda obj: next(region.column for region in obj[0] if region))
    background, striped = _describe_background(frames)
    return SceneDescription(tuple(obj for _, obj in objects), background, striped)


def find_regions(frames: Frames) -> list[list[Region]]:
    """Return for each frame the connected coloured regions that are large enough to be objects."""
    frames = _downsample(frames)
    labels = _label_components(object_mask(frames))
    return [list(_regions_of_frame(*pair)) for pair in zip(frames, labels, strict=True)]


def object_mask(frames: Frames) -> Bool[Tensor, "n height width"]:
    """Return a mask of the objects' pixels. Backgrounds have hardly any chroma."""
    return _chroma(frames) > MIN_CHROMA


def classify_motion(track: list[Region | None]) -> tuple[str | None, str | None]:
    """Return the motion of an object and, for straight motions, its speed, from its regions over time."""
    present = [region for region in track if region]
    steps = min(len(track) - 1, MAX_THRESHOLD_STEPS)
    if len(present) < 0.75 * len(track) or steps < 4:
        return None, None
    rows = _smooth(_unwrap([region.row for region in present], HEIGHT))
    columns = _smooth(_unwrap([region.column for region in present], WIDTH))
    areas = _smooth(torch.tensor([region.area for region in present]))
    if float(areas[-1] / areas[0]) > 1 + GROWTH_PER_STEP * steps:
        return "growing", None
    height_px, width_px = float(rows.max() - rows.min()), float(columns.max() - columns.min())
    if max(height_px, width_px) < STILL_PX_PER_STEP * steps:
        return "still", None
    down, right = float(rows[-1] - rows[0]), float(columns[-1] - columns[0])
    path_length = float(torch.hypot(rows.diff(), columns.diff()).sum())
    if math.hypot(down, right) > MIN_STRAIGHTNESS * path_length:
        speed = "fast" if path_length / (len(rows) - 1) > FAST_PX_PER_STEP else "slow"
        if abs(down) > abs(right):
            return ("down" if down > 0 else "up"), speed
        return ("right" if right > 0 else "left"), speed
    is_round = min(height_px, width_px) > MIN_ROUNDNESS * max(height_px, width_px)
    return ("circling" if is_round else "bouncing"), None


def classify_shape(track: list[Region | None], frames: Frames) -> str | None:
    """Return the shape whose rendering at the object's place and size differs least from the frames.

    Return None if the object is in no frame.
    """
    errors = dict.fromkeys(SHAPES, 0.0)
    present = [(region, frame) for region, frame in zip(track, frames, strict=True) if region]
    for region, frame in present:
        estimate, nearby = _estimated_coverage(region, frame)
        for name in SHAPES:
            differences = (_template(name, scale, region) - estimate for scale in TEMPLATE_SCALES)
            errors[name] += min(float(x[nearby].square().sum() / region.area) for x in differences)
    return min(errors, key=lambda name: errors[name]) if present else None


def _downsample(frames: Frames) -> Frames:
    """Average the frames down to 64×96."""
    scale = frames.shape[1] // HEIGHT
    return frames.unflatten(2, (-1, scale)).unflatten(1, (-1, scale)).mean((2, 4))


def _describe_object(track: list[Region | None], frames: Frames) -> ObjectDescription:
    stride = max(1, len(track) // NUM_SHAPE_FRAMES)
    motion, speed = classify_motion(track)
    colour = next(region.colour for region in track if region)
    return ObjectDescription(classify_shape(track[::stride], frames[::stride]), colour, motion, speed, None)


def _estimated_coverage(region: Region, frame: Frame) -> tuple[Float[Tensor, "height width"], Mask]:
    """Estimate which share of each pixel an object covers; also return a mask of its neighbourhood."""
    nearby = _template("ball", NEIGHBOURHOOD_RADII, region) > 0.5
    chroma = _chroma(frame)
    full = chroma[nearby].topk(max(1, int(FULL_COLOUR_SHARE * region.area))).values.mean()
    return (chroma / full).clamp(0, 1), nearby


def _template(name: Shape, scale: float, region: Region) -> Float[Tensor, "height width"]:
    row, column = torch.tensor([region.row]), torch.tensor([region.column])
    return coverage(name, row, column, torch.tensor([scale * math.sqrt(region.area / math.pi)]))[0]


def _regions_of_frame(
    frame: Float[Tensor, "height width 3"], labels: Float[Tensor, "height width"]
) -> Iterator[Region]:
    """Return the regions of one frame, given the label of each pixel."""
    for label in set(labels[labels > 0].tolist()):
        mask = labels == label
        if (area := float(mask.sum())) >= MIN_AREA_PX:
            yield Region(_nearest_colour(frame[mask]), *_centroid(mask), area)


def _label_components(mask: Bool[Tensor, "n height width"]) -> Float[Tensor, "n height width"]:
    """Label connected components: one number per region, 0 outside. Spread labels until nothing changes."""
    labels = torch.arange(1.0, mask[0].numel() + 1).view(mask[0].shape) * mask
    while True:
        spread = _spread_along_rows(_spread_along_rows(labels, mask).mT, mask.mT).mT
        if torch.equal(spread, labels):
            return labels
        labels = spread


def _spread_along_rows(labels: Float[Tensor, "n h w"], mask: Bool[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Give each horizontal run of pixels its largest label. Runs continue across the edge."""
    starts = mask & ~mask.roll(1, -1)
    run = starts.cumsum(-1) % starts.sum(-1, keepdim=True).clamp(min=1)
    largest = torch.zeros_like(labels).scatter_reduce(-1, run, labels, "amax")
    return largest.gather(-1, run) * mask


def _nearest_colour(pixels: Float[Tensor, "n 3"]) -> str:
    """Return the named colour with the hue nearest to that of the more coloured half of the pixels."""
    chroma = _chroma(pixels)
    mean = pixels[chroma >= chroma.median()].mean(0)
    names = list(COLOURS)
    hues = torch.stack([_hue(torch.tensor(COLOURS[name])) for name in names])
    return names[int((hues @ _hue(mean)).argmax())]


def _hue(colour: Float[Tensor, "3"]) -> Float[Tensor, "3"]:
    return F.normalize(colour - colour.mean(), dim=0)


def _chroma(x: Float[Tensor, "*rest 3"]) -> Float[Tensor, "*rest"]:
    return x.amax(-1) - x.amin(-1)


def _centroid(mask: Mask) -> tuple[float, float]:
    """Return row and column of the centre of mass on the torus."""
    rows, columns = mask.nonzero().float().T
    return _circular_mean(rows, HEIGHT), _circular_mean(columns, WIDTH)


def _circular_mean(positions: Float[Tensor, " n"], period: int) -> float:
    angles = (positions + 0.5) / period * 2 * torch.pi
    estimate = float(torch.atan2(angles.sin().mean(), angles.cos().mean())) / (2 * math.pi) * period
    offsets = (positions + 0.5 - estimate + period / 2) % period - period / 2
    return (estimate + float(offsets.mean())) % period


def _unwrap(positions: list[float], period: int) -> Float[Tensor, " n"]:
    """Remove the jumps where an object left on one side and came back on the opposite side."""
    x = torch.tensor(positions)
    steps = (x.diff() + period / 2) % period - period / 2
    return torch.cat([x[:1], x[:1] + steps.cumsum(0)])


def _smooth(x: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    return F.avg_pool1d(x[None], 3, 1)[0]


def _largest_region(regions: list[Region], colour: str) -> Region | None:
    return max(
        (region for region in regions if region.colour == colour),
        key=lambda region: region.area,
        default=None,
    )


def _describe_background(frames: Frames) -> tuple[str, bool]:
    """Return the background colour nearest to the frames', and whether it is striped."""
    plain = ~object_mask(frames)
    rows = torch.stack([frames[:, row][plain[:, row]].median(0).values for row in range(frames.shape[1])])
    colour = rows.nanmean(0)
    background = min(
        BACKGROUNDS, key=lambda name: float((colour - torch.tensor(BACKGROUNDS[name])).abs().sum())
    )
    return background, float(rows.mean(-1).nan_to_num(float(colour.mean())).std()) > MIN_STRIPE_STD
