"""What the rank processes can be asked for; each function gets its `ContextParallel` first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from model.io.checkpoint import open_safetensors
from model.io.lora import LoraMemory
from model.parallel import broadcast, halo
from model.parallel.mesh import ContextParallel, divide, divide_into_blocks
from model.parallel.sharded_blocks import ShardedBlocks, start_gather
from model.parallel.sharding import gather, shard
from model.parallel.ulysses import heads_to_tokens, tokens_to_heads
from model.pipeline.events import Frames, Latents, Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.sample import Conditioning, denoise
from model.pipeline.state import State
from model.spec.errors import CheckpointError, GroupError, LeaderError
from model.transformer.block import Block
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


@dataclasses.dataclass(frozen=True)
class Run:
    """A job runs on the block of `width` ranks from `first` on, for `steps` steps or to its end."""

    job: int
    first: int
    width: int
    steps: int | None = None


def in_block(world: ContextParallel, width: int) -> ContextParallel:
    """This rank's place in its block of a width."""
    return next(each for each in (world, *world.wider) if each.size == width)


def run_in_blocks(
    parallel: ContextParallel,
    checkpoint: Path,
    folder: Path,
    requests: list[Request],
    rounds: list[list[Run]],
) -> list[tuple[int, int, str, torch.Tensor]]:
    """The latents of the stages that ended here: job, segment, stage, latents.

    The runs of a round are in blocks that have no rank in common. Each job resumes where it was stopped.
    """
    world = divide_into_blocks(CPU)
    whole = Pipeline.load(checkpoint, torch.float32, world)
    latents = []
    for runs in rounds:
        for run in runs:
            if run.first <= dist.get_rank() < run.first + run.width:
                latents += run_in_block(whole.on(in_block(world, run.width)), folder, requests[run.job], run)
        dist.barrier(parallel.group)  # the saved states are complete
    return latents


def run_in_block(
    pipeline: Pipeline, folder: Path, request: Request, run: Run
) -> list[tuple[int, int, str, torch.Tensor]]:
    latents: list[tuple[int, int, str, torch.Tensor]] = []
    steps = 0
    saved = folder / f"{run.job}.safetensors"
    is_leader = pipeline.parallel.is_leader
    resume = State.load(saved) if is_leader and saved.exists() else None
    for event in pipeline.generate(request, resume):
        if isinstance(event, Latents):
            latents.append((run.job, event.segment, event.stage, event.latents))
        if isinstance(event, Stepped):
            steps += 1
            if steps == run.steps:
                if is_leader:
                    event.state.save(saved)
                break
    return latents


def sharded(parallel: ContextParallel) -> ContextParallel:
    """The same ranks, which share the weights of the blocks."""
    return dataclasses.replace(parallel, weights_group=parallel.group)


def latents_of(pipeline: Pipeline, requests: list[Request]) -> list[list[torch.Tensor]]:
    """The latents of each stage of each request; the frames are not waited for."""
    results = []
    for request in requests:
        last = "refine" if request.plan.refinement else "denoise"
        stages = []
        for event in pipeline.generate(request):
            if isinstance(event, Latents):
                stages.append(event.latents)
                if event.stage == last and event.segment == request.plan.num_segments - 1:
                    break
        results.append(stages)
    return results


def with_and_without_sharding(
    parallel: ContextParallel, checkpoint: Path, requests: list[Request], dtype: torch.dtype, fp8: bool
) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """The latents of requests, one after the other, without sharing weights and with it."""
    if not parallel.is_leader:
        requests = [dataclasses.replace(request, image=None, video=None) for request in requests]
    whole = Pipeline.load(checkpoint, dtype, parallel, fp8=fp8)
    for parameter in whole.dit.parameters():
        # Weights in the dtype of the file are views of it. Products on a CPU round by the alignment of their
        # factors, so give the weights the one of an allocation.
        parameter.data = parameter.data.clone()
    shards = Pipeline.load(checkpoint, dtype, sharded(parallel), fp8=fp8)
    return list(zip(latents_of(whole, requests), latents_of(shards, requests), strict=True))


def blocks_of(pipeline: Pipeline) -> ShardedBlocks[Block]:
    blocks = pipeline.dit.block_weights
    assert isinstance(blocks, ShardedBlocks)
    return blocks


def held_bytes(parallel: ContextParallel, checkpoint: Path, dtype: torch.dtype, fp8: bool) -> dict[str, int]:
    """The memory of the transformer on a rank that shares weights, and without sharing."""
    whole, shards = (
        Pipeline.load(checkpoint, dtype, ranks, fp8=fp8) for ranks in (parallel, sharded(parallel))
    )
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in [*shards.dit.state_dict().values(), *blocks_of(shards)._shards]
    }
    blocks = [sum(x.nbytes for x in block.state_dict().values()) for block in whole.dit.blocks]
    return {
        "held": sum(storages.values()),
        "blocks": sum(blocks),
        "largest block": max(blocks),
        "outside": sum(x.nbytes for x in whole.dit.state_dict().values()) - sum(blocks),
        "tensors": len(whole.dit.state_dict()),
    }


def tensors_read(
    parallel: ContextParallel, checkpoint: Path, memory: LoraMemory | None = None
) -> dict[str, list[str]]:
    """The tensors that this rank reads when it loads the transformer, and when it merges a LoRA.

    With `memory`, also those that it reads to prepare all LoRAs before.
    """
    read: list[str] = []

    @contextmanager
    def recording(path: Path, device: torch.device | str = "cpu") -> Iterator[object]:
        with open_safetensors(path, device) as file:
            yield Recorded(file)

    class Recorded:
        def __init__(self, file) -> None:
            self.keys, self.get_slice, self._file = file.keys, file.get_slice, file

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self._file.get_tensor(name)

    with patch("model.io.checkpoint.open_safetensors", recording):
        pipeline = Pipeline.load(checkpoint, torch.float32, sharded(parallel))
        loaded = [name for name in read if name in pipeline.dit.state_dict()]
        read.clear()
        if memory:
            pipeline.lora.prepare(memory, "weights")
        prepared = list(read)
        read.clear()
        pipeline.lora.switch("cfg_step_lora")
    return {"loaded": loaded, "prepared": prepared, "merged": read}


class CountedWork:
    """A collective under way, and whether it was waited for."""

    def __init__(self, work: dist.Work) -> None:
        self._work = work
        self.waited = False

    def wait(self) -> None:
        self._work.wait()
        self.waited = True


def gathers(
    parallel: ContextParallel, checkpoint: Path, request: Request, num_steps: int = 1
) -> dict[str, list[object]]:
    """What a job gathers and computes up to a step, in order, and whether each gather was waited for."""
    pipeline = Pipeline.load(checkpoint, torch.float32, sharded(parallel))
    done: list[object] = []
    work: list[CountedWork] = []

    def counted(whole, shard, group):
        done.append(("gather", whole.nbytes))
        work.append(CountedWork(start_gather(whole, shard, group)))
        return work[-1]

    for number, block in enumerate(pipeline.dit.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: done.append(("compute", number)))
    with patch("model.parallel.sharded_blocks.start_gather", counted):
        for event in pipeline.generate(request):
            done.append(type(event).__name__)
            if isinstance(event, Stepped) and event.step == num_steps:
                break
    return {"done": done, "waited": [each.waited for each in work]}


def forward_after_failure(
    parallel: ContextParallel, checkpoint: Path, request: Request
) -> list[torch.Tensor]:
    """The latents of a job before and after another one that fails in the second of its blocks."""
    pipeline = Pipeline.load(checkpoint, torch.float32, sharded(parallel))
    (before,) = latents_of(pipeline, [request])

    def fail(*_) -> None:
        raise MemoryError("no room")

    with pipeline.dit.blocks[1].register_forward_pre_hook(fail), suppress(MemoryError):
        latents_of(pipeline, [request])
    (after,) = latents_of(pipeline, [request])
    return [*before, *after]


def weights_after_switches(
    parallel: ContextParallel,
    checkpoint: Path,
    names: list[str | None],
    fp8: bool,
    memory: LoraMemory | None = None,
) -> list[dict[str, bool]]:
    """Whether each weight equals that of a rank without sharing, after each of several changes of LoRA.

    With `memory`, the ranks that share take merged weights from there.
    """
    whole, shards = (
        Pipeline.load(checkpoint, torch.bfloat16, ranks, fp8=fp8) for ranks in (parallel, sharded(parallel))
    )
    if memory:
        shards.lora.prepare(memory, "weights")
    results = []
    for name in names:
        whole.lora.switch(name)
        shards.lora.switch(name)
        equal = {}
        with blocks_of(shards).in_order() as blocks:
            for number, (block, expected) in enumerate(zip(blocks, whole.dit.blocks, strict=True)):
                expected_tensors = expected.state_dict()
                for path, tensor in block.state_dict().items():
                    same = torch.equal(tensor.float(), expected_tensors[path].float())
                    equal[f"blocks.{number}.{path}"] = same
        ours, theirs = shards.dit.state_dict(), whole.dit.state_dict()
        equal |= {x: torch.equal(ours[x], theirs[x]) for x in theirs if not x.startswith("blocks.")}
        results.append(equal)
    return results


def compiled_with_and_without_sharding(
    parallel: ContextParallel, checkpoint: Path, request: Request, backend: str
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The latents of a compiled transformer, without sharing weights and with it."""
    results = []
    for ranks in (parallel, sharded(parallel)):
        pipeline = Pipeline.load(checkpoint, torch.bfloat16, ranks)
        with patch("model.transformer.compile.torch.compile", partial(torch.compile, backend=backend)):
            assert fuse(pipeline.dit, "on")
        results += latents_of(pipeline, [request])
    whole, shards = results
    return whole, shards


def refused_to_divide(parallel: ContextParallel, size: int) -> str:
    """Why these ranks cannot be divided into groups of a size that share weights."""
    try:
        divide(CPU, size, shard_weights=True)
    except GroupError as error:
        return str(error)
    return "nothing"


def weights_of_replicas(parallel: ContextParallel) -> list[int]:
    """The ranks that share weights with this one."""
    shared = divide(CPU, parallel.size, shard_weights=True).weights_group
    assert shared is not None
    assert shared is not parallel.group
    return dist.get_process_group_ranks(shared)


def places(parallel: ContextParallel) -> list[tuple[int, int, int]]:
    """Width, rank and number of each block that this rank is in."""
    world = divide_into_blocks(CPU)
    assert world.size == 1
    own = (1, 0, dist.get_rank())
    return [own, *((block.size, block.rank, block.replica) for block in world.wider)]
