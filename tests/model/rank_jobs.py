"""What the rank processes can be asked for; each function gets its `ContextParallel` first."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from model.parallel import broadcast, halo
from model.parallel.mesh import ContextParallel, divide
from model.parallel.sharding import gather, shard
from model.parallel.ulysses import heads_to_tokens, tokens_to_heads
from model.pipeline.events import Frames, Latents, Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.sample import Conditioning, denoise
from model.spec.errors import CheckpointError, LeaderError
from model.transformer.compile import fuse
from model.vae.vae import Vae
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
    """Shard tensors, exchange tokens for heads and back, and gather."""
    length, groups_of_frames = tensors[0].shape[2], tensors[0].shape[1]
    by_heads = tokens_to_heads(parallel, [shard(parallel, x) for x in tensors], length)
    back = heads_to_tokens(parallel, by_heads[0], groups_of_frames)
    return by_heads, gather(parallel, back.flatten(3), length)


def from_leader(parallel: ContextParallel, conditioning: Conditioning) -> dict[str, object]:
    """A conditioning that only the leader has, as every rank gets it."""
    received = broadcast.from_leader(parallel, lambda: conditioning if parallel.is_leader else None)
    return vars(received)


def failing_leader(parallel: ContextParallel) -> str:
    """What each rank is told when the leader fails."""

    def build() -> Conditioning:
        raise CheckpointError(Path("vae"), "is missing")

    try:
        broadcast.from_leader(parallel, build)
    except CheckpointError as error:
        return str(error)
    return "nothing"


def exhausted_leader(parallel: ContextParallel) -> tuple[str, str]:
    """How each rank is told that the leader alone has no memory left, and what it gets after that."""

    def build() -> str:
        raise MemoryError("no room")

    try:
        broadcast.from_leader(parallel, build)
    except (MemoryError, LeaderError) as error:
        told = f"{type(error).__name__}: {error}"
    return told, broadcast.from_leader(parallel, lambda: "well again")


def velocity(parallel: ContextParallel, case: str) -> torch.Tensor:
    return parity_cases.velocity(case, parallel)[0]


def compiled_velocity(parallel: ContextParallel, case: str, backend: str) -> torch.Tensor:
    """The same with the blocks' parts compiled by a backend."""
    dit = parity_cases.dit_for(case)
    with patch("model.transformer.compile.torch.compile", partial(torch.compile, backend=backend)):
        fuse(dit, "on")
    return parity_cases.velocity(case, parallel, dit)[0]


def encoders_here(parallel: ContextParallel, checkpoint: Path) -> bool:
    return Pipeline.load(checkpoint, torch.float32, parallel).encoders is not None


def guided(
    parallel: ContextParallel, checkpoint: Path, conditioning: Conditioning, split: bool
) -> tuple[torch.Tensor, int]:
    """Where a guided loop ends, and how many elements this rank traded for it in attention."""
    parallel = parallel if split else dataclasses.replace(parallel, cfg_branch=None)
    sent = []
    exchange = dist.all_to_all_single

    def counted(received, given, *arguments, **options):
        size = dist.get_world_size(options["group"])
        sent.append(given.numel() // size * (size - 1))
        return exchange(received, given, *arguments, **options)

    with patch.object(dist, "all_to_all_single", counted):
        *_, last = denoise(parity_cases.load_dit(checkpoint), conditioning, parallel)
    return last, sum(sent)


def pictures(
    parallel: ContextParallel, checkpoint: Path, latents: torch.Tensor, frames: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip decoded, and another one encoded, by all ranks together."""
    vae = Vae.load(checkpoint, CPU, torch.float32, parallel)
    return torch.cat(list(vae.decode(latents))), vae.encode(frames, torch.Generator().manual_seed(0))


def halo_exchange(parallel: ContextParallel) -> tuple[float, float]:
    """Rows around this rank, whose first row is its number (from 1) and whose last is twice that."""
    first = torch.tensor([parallel.rank + 1.0])
    above, below = halo.halo_exchange(parallel, first, 2 * first)
    return float(above), float(below)


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
