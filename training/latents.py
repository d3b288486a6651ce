"""Stage 3: encode the dataset, so that training the transformer need not render or encode anything.

`python -m training.latents RUN CHECKPOINT` writes shards of 512 clips as latents (`--steps`: the number of
shards). Every four consecutive clips are a contrastive group: one scene in which the objects have different
shapes, in every second group also different motions, and, if there is one object, different colours. Most
clips begin at time 0, when no object crosses an edge; the others begin later and serve only as
continuations. `LatentDataset` reads the shards.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.analytic_encoder import encode_clip
from training.scenes import (
    COLOURS,
    SHAPES,
    Motion,
    PlacedScene,
    Scene,
    SceneObject,
    Shape,
    allowed_motions,
    draw,
    place,
    random_scene,
    with_motion,
)
from training.stage import parse_options

SHARDS, SHARD_CLIPS, NUM_FRAMES = 64, 512, 17
LATER_SHARE, LATEST_FRAME = 0.25, 105
SEED = 6
GROUP_SIZE = len(SHAPES)  # at most the number of motions in a scene of two objects
WIDEST_SHAPE: Shape = "triangle"  # where a triangle has space, every shape has


def main() -> None:
    """Write the shards that do not exist yet."""
    options = parse_options("latents", __doc__, SHARDS)
    options.folder.mkdir(parents=True, exist_ok=True)
    for shard in range(options.steps):
        path = options.folder / f"{shard:04}.npy"
        if not path.exists():
            first = shard * SHARD_CLIPS
            clips = torch.stack([clip_latents(index) for index in range(first, first + SHARD_CLIPS)])
            temporary = path.with_suffix(".part.npy")
            np.save(temporary, clips.half().numpy())
            temporary.replace(path)


def clip_latents(index: int) -> Float[Tensor, "c f h w"]:
    """Return the unnormalised latents of a clip of the dataset."""
    placed, first = clip_scene(index)
    return encode_clip(draw(placed, torch.arange(float(NUM_FRAMES)) + first))


def clip_scene(index: int) -> tuple[PlacedScene, int]:
    """Return the scene of a clip of the dataset, and the time of its first frame."""
    group, member = divmod(index, GROUP_SIZE)
    random = np.random.default_rng((SEED, group))
    first = random.integers(1, LATEST_FRAME) if random.random() < LATER_SHARE else 0
    scene = random_scene(random)
    shown = contrastive_group(scene, random, shares_motion(group))[member]
    widest = replace(shown, objects=tuple(replace(obj, shape=WIDEST_SHAPE) for obj in shown.objects))
    centres = place(widest, np.random.default_rng((SEED, group, 1)), NUM_FRAMES).centres
    return PlacedScene(shown, centres), int(first)


def shares_motion(group: int) -> bool:
    """Return whether the clips of a group have the same motions, and so the same positions."""
    return group % 2 == 0


def contrastive_group(scene: Scene, random: np.random.Generator, same_motion: bool) -> list[Scene]:
    """Return `GROUP_SIZE` versions of a scene that differ in shape and, unless `same_motion`, in motion.

    A single object also differs in colour. Two objects keep theirs, because captions identify them by colour.
    """
    num_objects = len(scene.objects)
    variants = []
    for obj in scene.objects:
        colours = [obj.colour] * GROUP_SIZE
        if num_objects == 1:
            colours = random.permutation(list(COLOURS)).tolist()[:GROUP_SIZE]
        looks = zip(colours, random.permutation(len(SHAPES)), strict=True)
        objects = [replace(obj, colour=colour, shape=SHAPES[shape]) for colour, shape in looks]
        if not same_motion:
            objects = _with_different_motions(objects, allowed_motions(num_objects), random)
        variants.append(objects)
    return [replace(scene, objects=objects) for objects in zip(*variants, strict=True)]


def _with_different_motions(
    objects: list[SceneObject], motions: tuple[Motion, ...], random: np.random.Generator
) -> list[SceneObject]:
    """Give each object another motion."""
    chosen = random.permutation(len(motions))[: len(objects)]
    return [with_motion(obj, motions[motion], random) for obj, motion in zip(objects, chosen, strict=True)]


@dataclass(frozen=True)
class LatentDataset:
    """Hold the latents and the scene of each clip, and which clips can be used for what.

    Attributes:
        latents: Unnormalised latents of all clips.
        scenes: The scene of each clip.
        beginnings: Indices of the clips that begin at time 0.
        aligned: Indices of those whose group shares motions and positions.
        has_two_objects: Whether each clip shows two objects.
    """

    latents: Float[Tensor, "n c f h w"]
    scenes: list[Scene]
    beginnings: Int[np.ndarray, " beginnings"]
    aligned: Int[np.ndarray, " aligned"]
    has_two_objects: Bool[np.ndarray, " n"]

    @classmethod
    def open(cls, run: Path) -> "LatentDataset":
        """Read all shards of a run."""
        shards = [np.load(path) for path in sorted((run / "latents").glob("????.npy"))]
        return cls.of(torch.from_numpy(np.concatenate(shards)))

    @classmethod
    def of(cls, clips: Float[Tensor, "n c f h w"]) -> "LatentDataset":
        """Build from the latents of the first clips of the dataset."""
        shown = [clip_scene(index) for index in range(len(clips))]
        scenes = [placed.scene for placed, _ in shown]
        beginnings = np.flatnonzero([first == 0 for _, first in shown])
        aligned = np.array([index for index in beginnings.tolist() if shares_motion(index // GROUP_SIZE)])
        has_two_objects = np.array([len(scene.objects) == 2 for scene in scenes])
        return cls(clips, scenes, beginnings, aligned, has_two_objects)


if __name__ == "__main__":
    main()
