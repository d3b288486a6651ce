"""What the rank processes can be asked for; each function is given its share in the work first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.distributed as dist

from model.errors import CheckpointError
from model.parallel import ContextParallel, divide
from model.pipeline import Pipeline
from model.request import Frames, Latents, Request, Stepped
from model.sample import Conditioning
from tests.model import parity_cases

CPU = torch.device("cpu")


def groups(rank: int, count: int) -> dict[int, ContextParallel]:
    """This rank's place in groups of each size; the first group of a size does the work."""
    made = {size: divide(CPU, size) for size in (2, count)}
    three = dist.new_group([0, 1, 2])
    if rank < 3:
        made[3] = ContextParallel(CPU, size=3, rank=rank, group=three)
    return {size: parallel for size, parallel in made.items() if parallel.replica == 0}


def place(parallel: ContextParallel) -> tuple[int, int, bool]:
    return parallel.size, parallel.rank, parallel.is_leader


def there_and_back(
    parallel: ContextParallel, tensors: list[torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Whole tensors shared out, traded for heads, traded back and gathered."""
    length, groups_of_frames = tensors[0].shape[2], tensors[0].shape[1]
    of_heads = parallel.to_heads([parallel.share(x) for x in tensors], length)
    back = parallel.to_tokens(of_heads[0], groups_of_frames)
    return of_heads, parallel.gather(back.flatten(3), length)


def from_leader(parallel: ContextParallel, conditioning: Conditioning) -> dict[str, object]:
    """A conditioning that only the leader has, as every rank gets it."""
    received = parallel.from_leader(lambda: conditioning if parallel.is_leader else None)
    return vars(received)


def failing_leader(parallel: ContextParallel) -> str:
    """What each rank is told when the leader fails."""

    def build() -> Conditioning:
        raise CheckpointError(Path("vae"), "is missing")

    try:
        parallel.from_leader(build)
    except CheckpointError as error:
        return str(error)
    return "nothing"


def velocity(parallel: ContextParallel, case: str) -> torch.Tensor:
    return parity_cases.velocity(case, parallel)[0]


def encoders_here(parallel: ContextParallel, checkpoint: Path) -> bool:
    return Pipeline.load(checkpoint, torch.float32, parallel).encoders is not None


def generate(parallel: ContextParallel, checkpoint: Path, request: Request, resume=None) -> dict[str, object]:
    """A job's events by their kind, latents and frames; followers are not given the inputs."""
    if not parallel.is_leader:
        request = dataclasses.replace(request, image=None, video=None, condition_video=None)
        resume = None
    events = list(Pipeline.load(checkpoint, torch.float32, parallel).generate(request, resume))
    frames = [event.frames for event in events if isinstance(event, Frames) and event.frames is not None]
    return {
        "kinds": [type(event).__name__ for event in events],
        "latents": [event.latents for event in events if isinstance(event, Latents)],
        "states": [event.state for event in events if isinstance(event, Stepped)]
        if parallel.is_leader
        else [],
        "frames": torch.cat(frames) if frames else None,
    }
