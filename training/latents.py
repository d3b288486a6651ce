"""Third stage: clips of the world as latents, so that the transformer's training draws nothing.

`python -m training.latents RUN CHECKPOINT` writes shards of 512 clips (`--steps`: how many shards). Four in a
row are twins, alike in all but the shapes of things, or these and what the things do, and the colour of one
that is alone. In most a scene is seen from its beginning, with nothing at an edge; the others are windows
into its later life, which training uses as continuations only. The stages that train a transformer read them
through `Clips`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.cells import latents
from training.stage import stage
from training.world import (
    COLOURS,
    SHAPES,
    Motion,
    Placed,
    Scene,
    Shape,
    Thing,
    draw,
    motions_of,
    moving,
    place,
    random_scene,
)

SHARDS, SHARD_CLIPS, NUM_FRAMES = 64, 512, 17
LATER_SHARE, LATEST_FRAME = 0.25, 105
SEED = 6
TWINS = len(SHAPES)  # no more than there are motions of a thing in a pair
WIDEST: Shape = "triangle"  # where it has room, all have


def main() -> None:
    """Write the shards that are not there yet."""
    told = stage("latents", __doc__, SHARDS)
    told.folder.mkdir(parents=True, exist_ok=True)
    for shard in range(told.steps):
        path = told.folder / f"{shard:04}.npy"
        if not path.exists():
            first = shard * SHARD_CLIPS
            clips = torch.stack([clip(index) for index in range(first, first + SHARD_CLIPS)])
            beside = path.with_suffix(".part.npy")
            np.save(beside, clips.half().numpy())
            beside.replace(path)


def clip(index: int) -> Float[Tensor, "c f h w"]:
    """Unnormalised latents of a clip of the data set."""
    placed, first = shown(index)
    return latents(draw(placed, torch.arange(float(NUM_FRAMES)) + first))


def shown(index: int) -> tuple[Placed, int]:
    """Which scene a clip of the data set shows, from which frame on."""
    family, turn = divmod(index, TWINS)
    random = np.random.default_rng((SEED, family))
    first = random.integers(1, LATEST_FRAME) if random.random() < LATER_SHARE else 0
    scene = random_scene(random)
    twin = twins(scene, random, do_alike(family))[turn]
    as_wide = replace(twin, things=tuple(replace(thing, shape=WIDEST) for thing in twin.things))
    centres = place(as_wide, np.random.default_rng((SEED, family, 1)), NUM_FRAMES).centres
    return Placed(twin, centres), int(first)


def do_alike(family: int) -> bool:
    """Whether twins of a family do the same, and so lie at the same places."""
    return family % 2 == 0


def twins(scene: Scene, random: np.random.Generator, alike: bool) -> list[Scene]:
    """The same ground, `TWINS` times: things of any shape and, unless they do `alike`, motion.

    A thing that is alone is of any colour, too. Two keep theirs, by which a caption tells them apart.
    """
    count = len(scene.things)
    each = []
    for thing in scene.things:
        colours = random.permutation(list(COLOURS)).tolist()[:TWINS] if count == 1 else [thing.colour] * TWINS
        looks = zip(colours, random.permutation(len(SHAPES)), strict=True)
        things = [replace(thing, colour=colour, shape=SHAPES[shape]) for colour, shape in looks]
        each.append(things if alike else _doing_others(things, motions_of(count), random))
    return [replace(scene, things=things) for things in zip(*each, strict=True)]


def _doing_others(
    things: list[Thing], motions: tuple[Motion, ...], random: np.random.Generator
) -> list[Thing]:
    """The things, each of which does something else."""
    doings = random.permutation(len(motions))[: len(things)]
    return [moving(thing, motions[doing], random) for thing, doing in zip(things, doings, strict=True)]


@dataclass(frozen=True)
class Clips:
    """Latents of a data set and the scene of each.

    Which show its beginning, which of these have twins at the same places, and in which are two things.
    """

    latents: Float[Tensor, "n c f h w"]
    scenes: list[Scene]
    beginnings: Int[np.ndarray, " beginnings"]
    aligned: Int[np.ndarray, " aligned"]
    are_pairs: Bool[np.ndarray, " n"]

    @classmethod
    def open(cls, run: Path) -> "Clips":
        """All shards of a run."""
        shards = [np.load(path) for path in sorted((run / "latents").glob("????.npy"))]
        return cls.of(torch.from_numpy(np.concatenate(shards)))

    @classmethod
    def of(cls, clips: Float[Tensor, "n c f h w"]) -> "Clips":
        """The first so many clips of the data set."""
        seen = [shown(index) for index in range(len(clips))]
        scenes = [placed.scene for placed, _ in seen]
        beginnings = np.flatnonzero([first == 0 for _, first in seen])
        aligned = np.array([index for index in beginnings.tolist() if do_alike(index // TWINS)])
        are_pairs = np.array([len(scene.things) == 2 for scene in scenes])
        return cls(clips, scenes, beginnings, aligned, are_pairs)


if __name__ == "__main__":
    main()
