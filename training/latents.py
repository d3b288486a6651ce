"""Third stage: clips of the world as latents, so that the transformer's training draws nothing.

`python -m training.latents RUN CHECKPOINT` writes shards of 512 clips (`--steps`: how many shards). Four in a
row are twins, alike in all but their shapes. In most a scene is seen from its beginning, with nothing at an
edge; the others are windows into its later life, which training uses as continuations only. The stages that
train a transformer read them through `Clips`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.cells import latents
from training.stage import stage
from training.world import SHAPES, Placed, Scene, Shape, draw, place, random_scene

SHARDS, SHARD_CLIPS, NUM_FRAMES = 64, 512, 17
LATER_SHARE, LATEST_FRAME = 0.25, 105
SEED = 5
TWINS = len(SHAPES)
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
    scene = random_scene(random)
    centres = place(with_shapes(scene, [WIDEST] * len(scene.things)), random, NUM_FRAMES).centres
    first = random.integers(1, LATEST_FRAME) if random.random() < LATER_SHARE else 0
    shapes = [SHAPES[(SHAPES.index(thing.shape) + turn) % TWINS] for thing in scene.things]
    return Placed(with_shapes(scene, shapes), centres), int(first)


def with_shapes(scene: Scene, shapes: list[Shape]) -> Scene:
    """The same things in other shapes."""
    things = zip(scene.things, shapes, strict=True)
    return replace(scene, things=tuple(replace(thing, shape=shape) for thing, shape in things))


@dataclass(frozen=True)
class Clips:
    """Latents of a data set, the scene of each, which show its beginning, and in which are two things."""

    latents: Float[Tensor, "n c f h w"]
    scenes: list[Scene]
    beginnings: Int[np.ndarray, " beginnings"]
    are_pairs: Bool[np.ndarray, " n"]

    @classmethod
    def open(cls, run: Path) -> "Clips":
        """All shards of a run."""
        shards = [np.load(path) for path in sorted((run / "latents").glob("????.npy"))]
        clips = torch.from_numpy(np.concatenate(shards))
        seen = [shown(index) for index in range(len(clips))]
        scenes = [placed.scene for placed, _ in seen]
        beginnings = np.flatnonzero([first == 0 for _, first in seen])
        return cls(clips, scenes, beginnings, np.array([len(scene.things) == 2 for scene in scenes]))


if __name__ == "__main__":
    main()
