"""What the rank processes can be asked for; each function gets its `ContextParallel` first."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import accumulate, count, pairwise
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from model.io.checkpoint import open_safetensors
from model.io.lora import WeightMemory
from model.parallel import broadcast, halo, links, mesh
from model.parallel.device import least_of_ranks
from model.parallel.machine import share_file
from model.parallel.mesh import SINGLE, ContextParallel, divide, divide_into_blocks
from model.parallel.ring import pass_around
from model.parallel.sharded_blocks import ShardedBlocks, start_gather
from model.parallel.sharding import gather, shard, shard_length
from model.parallel.ulysses import heads_to_tokens, tokens_to_heads
from model.pipeline.conditioning import StageInputs
from model.pipeline.events import Frames, Latents, Stepped
from model.pipeline.leader_clip import LeaderClip
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.sample import Conditioning, denoise
from model.pipeline.state import State
from model.spec.errors import CheckpointError, GroupError, LeaderError
from model.spec.geometry import Size
from model.spec.memory import Quantize
from model.transformer import attention, token_layout
from model.transformer.block import Block
from model.transformer.compile import fuse
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.streamed_blocks import StreamedBlocks
from model.transformer.token_layout import Window, build_layout
from model.vae.vae import Vae
from tests.model import parity_cases
from tests.model.random_dit import random_dit

CPU = torch.device("cpu")


def groups(rank: int, count: int) -> dict[tuple[int, int], ContextParallel]:
    """This rank's place in groups of each size and ring degree; the first group of a kind does the work."""
    kinds = [(2, 1), (count, 1), (2, 2), (count, 2), (count, count)]
    made = {(size, degree): divide(CPU, size, ring_degree=degree) for size, degree in kinds}
    three = dist.new_group([0, 1, 2])
    if rank < 3:
        made[3, 1] = ContextParallel(CPU, size=3, rank=rank, group=three)
        made[3, 3] = dataclasses.replace(made[3, 1], ring_and_heads=(made[3, 1], SINGLE))
    return {kind: parallel for kind, parallel in made.items() if parallel.replica == 0}


def least(parallel: ContextParallel, values: list[int]) -> int:
    return least_of_ranks(values[parallel.rank], parallel.device)


def shared_file(parallel: ContextParallel, per_machine: int) -> tuple[int, int, int]:
    """How many ranks and leaders this machine has, and what its first rank wrote to the file they share."""
    local_rank = parallel.rank % per_machine
    with patch.dict(os.environ, LOCAL_RANK=str(local_rank)):
        machine = share_file(parallel)
    assert machine.shared_file
    if local_rank == 0:
        machine.shared_file.write_bytes(bytes([parallel.rank]))
    dist.barrier()
    return machine.num_ranks, machine.num_leaders, machine.shared_file.read_bytes()[0]


def place(parallel: ContextParallel) -> tuple[int, int, bool]:
    return parallel.size, parallel.rank, parallel.is_leader


def there_and_back(
    parallel: ContextParallel, tensors: list[torch.Tensor], ordered: bool, num_slices: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Shard tensors, exchange tokens for heads and back in slices, and gather."""
    length, groups_of_frames = tensors[0].shape[2], tensors[0].shape[1]
    sharded = [shard(parallel, x) for x in tensors]
    slices = list(tokens_to_heads(parallel, sharded, length, num_slices, ordered=ordered))
    shard_size, _ = shard_length(parallel, length)
    queries = (qkv[0] for qkv in slices)
    back = heads_to_tokens(parallel, queries, groups_of_frames, shard_size, ordered=ordered)
    by_heads = [torch.cat(of_slices, dim=1) for of_slices in zip(*slices, strict=True)]
    return by_heads, gather(parallel, back.flatten(3), length)


def from_leader(parallel: ContextParallel, conditioning: Conditioning) -> dict[str, object]:
    """A conditioning that only the leader has, as every rank gets it."""
    received = broadcast.from_leader(parallel, lambda: conditioning if parallel.is_leader else None)
    return vars(received)


def clip_of_leader(
    parallel: ContextParallel, source: torch.Tensor, size: Size, lengths: list[int]
) -> tuple[list[torch.Tensor], int]:
    """Pieces of these lengths of a clip that only the leader has, and how many bytes are sent for them."""
    clip = LeaderClip.stretched(source, size, 14).padded(1, 3)
    inputs = StageInputs(torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, dtype=torch.uint8), clip)
    received = broadcast.from_leader(parallel, lambda: inputs).condition
    assert received
    assert isinstance(received.source, torch.Tensor) == parallel.is_leader
    sent_bytes, run = 0, dist.broadcast

    def counted(x, **options):
        nonlocal sent_bytes
        sent_bytes += x.nbytes
        return run(x, **options)

    with patch.object(dist, "broadcast", counted):
        ends = list(accumulate(lengths, initial=0))
        pieces = [received.read(parallel, slice(*piece)) for piece in pairwise(ends)]
    return pieces, sent_bytes


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


@dataclasses.dataclass(frozen=True)
class Forward:
    """A forward of a random transformer over noise frames and, in one of two ways, clean ones before them.

    With a `backend`, the blocks' parts are compiled by it.
    """

    config: DitConfig
    window: Window
    num_cached: int = 0
    sparse: bool = False
    backend: str | None = None

    def __call__(self, parallel: ContextParallel) -> torch.Tensor:
        """The velocity, on this rank."""
        dit, window = random_dit(self.config), self.window
        if self.backend is not None:
            compile_blocks(dit, self.backend)
        draw = torch.Generator().manual_seed(3)
        clean, latents = (
            torch.randn(b, 16, frames, window.height, window.width, generator=draw)
            for b, frames in ((1, self.num_cached), (2, window.num_frames))
        )
        condition_kv = None
        if self.num_cached:
            clean_window = Window(self.num_cached, window.height, window.width)
            condition_kv = dit.condition_kv(
                clean, build_layout(self.config, clean_window, parallel, sparse=False)
            )
            window = window._replace(first=self.num_cached)
        text = dit.text_kv(
            torch.randn(2, 5, self.config.caption_channels, generator=draw),
            torch.ones(2, 5, dtype=torch.long),
        )
        timesteps = torch.full((2, window.num_frames), 700.0)
        timesteps[:, : window.num_condition] = 0
        layout = build_layout(self.config, window, parallel, sparse=self.sparse)
        return dit(latents, timesteps, layout, text, condition_kv)


def forward(parallel: ContextParallel, forward: Forward) -> torch.Tensor:
    return forward(parallel)


def forward_and_bytes_sent(
    parallel: ContextParallel, forward: Forward
) -> tuple[torch.Tensor, dict[str, int]]:
    """The velocity, and how many bytes this rank sends for it, by the name of the function."""
    with counted_bytes() as sent:
        return forward(parallel), sent


def with_and_without_slices(
    parallel: ContextParallel, forward: Forward
) -> list[tuple[torch.Tensor, list[int]]]:
    """The velocity over fast links and over slow ones, with the bytes of each exchange."""
    found = []
    for ranks in (parallel, dataclasses.replace(parallel, has_slow_links=True)):
        with exchanged_bytes() as sizes:
            found.append((forward(ranks), sizes))
    return found


def guided_with_and_without_slices(
    parallel: ContextParallel, config: DitConfig
) -> list[tuple[torch.Tensor, list[int]]]:
    """Where a loop with split guidance ends over fast links and slow ones, with the bytes of exchanges."""
    assert parallel.cfg_branch
    dit, draw, found = random_dit(config), torch.Generator().manual_seed(3), []
    start = torch.randn(1, 16, 3, 4, 8, generator=draw)
    conditioning = Conditioning(
        start=start,
        clean=start[:, :, :0],
        text=torch.randn(2, 5, config.caption_channels, generator=draw),
        mask=torch.ones(2, 5, dtype=torch.long),
        timesteps=torch.tensor([900.0, 500.0]),
        sigmas=torch.tensor([0.9, 0.5, 0.0]),
        guidance_scale=4.0,
    )
    for slow in (False, True):
        branch = dataclasses.replace(parallel.cfg_branch, has_slow_links=slow)
        with exchanged_bytes() as sizes:
            *_, last = denoise(dit, conditioning, dataclasses.replace(parallel, cfg_branch=branch))
        found.append((last, sizes))
    return found


@contextmanager
def exchanged_bytes() -> Iterator[list[int]]:
    """Record the bytes of each exchange of heads or tokens."""
    exchange, sizes = dist.all_to_all_single, []

    def counted(received, given, **options):
        sizes.append(given.nbytes)
        return exchange(received, given, **options)

    with patch.object(dist, "all_to_all_single", counted):
        yield sizes


def exchanges_of_failed_forward(
    parallel: ContextParallel, forward: Forward, failing: int
) -> tuple[list[bool], bool]:
    """Fail in attention to one of the slices of the first block.

    Return whether each exchange was waited for, and whether the next forward is the same as the one before.
    """
    ranks = dataclasses.replace(parallel, has_slow_links=True)
    exchange, work, calls = dist.all_to_all_single, [], count()

    def counted(received, given, **options):
        work.append(CountedWork(exchange(received, given, **options)))
        return work[-1]

    def attend(q, *rest, **options):
        if next(calls) == failing:
            raise MemoryError("no room")
        return attention.attend(q, *rest, **options)

    before = forward(ranks)
    with (
        patch.object(dist, "all_to_all_single", counted),
        patch.object(token_layout, "attend", attend),
        suppress(MemoryError),
    ):
        forward(ranks)
    return [each.waited for each in work], torch.equal(before, forward(ranks))


def measured_links(parallel: ContextParallel) -> float:
    """The rate of the links among these ranks."""
    with patch.object(links, "EXCHANGED_BYTES", 1 << 10):
        return links.sent_bytes_per_s(parallel.device, parallel.group)


def places_with_slow_links(parallel: ContextParallel) -> dict[str, bool]:
    """The places of a rank that know slow links, if all groups of two ranks have them."""
    with patch.object(mesh, "has_slow_links", lambda _, group: dist.get_world_size(group) == 2):
        whole, ring = (divide(CPU, 4, ring_degree=degree) for degree in (1, 2))
    assert whole.cfg_branch is not None
    places = {
        "group": whole,
        "heads": ring.heads,
        "branch": whole.cfg_branch,
        "branch heads": whole.cfg_branch.heads,
    }
    return {name: place.has_slow_links for name, place in places.items()}


@contextmanager
def counted_bytes() -> Iterator[dict[str, int]]:
    """Count what leaves this rank in the exchanges around attention."""
    sent = {"all_to_all_single": 0, "all_gather": 0, "batch_isend_irecv": 0}
    run = {name: getattr(dist, name) for name in sent}

    def all_to_all_single(received, given, group, async_op):
        sent["all_to_all_single"] += (
            given.nbytes // dist.get_world_size(group) * (dist.get_world_size(group) - 1)
        )
        return run["all_to_all_single"](received, given, group=group, async_op=async_op)

    def all_gather(received, given, group):
        sent["all_gather"] += given.nbytes * (dist.get_world_size(group) - 1)
        return run["all_gather"](received, given, group=group)

    def batch_isend_irecv(transfers):
        sent["batch_isend_irecv"] += sum(each.tensor.nbytes for each in transfers if each.op is dist.isend)
        return run["batch_isend_irecv"](transfers)

    with patch.multiple(
        dist, all_to_all_single=all_to_all_single, all_gather=all_gather, batch_isend_irecv=batch_isend_irecv
    ):
        yield sent


def places_in_ring(parallel: ContextParallel) -> dict[str, list[int]]:
    """The ranks with which this one shares each of its places."""
    branch = parallel.cfg_branch
    of_branch = (
        {} if branch is None else {"branch": branch, "branch ring": branch.ring, "branch heads": branch.heads}
    )
    places = {"ring": parallel.ring, "heads": parallel.heads, **of_branch}
    return {
        name: [dist.get_rank()] if place.group is None else dist.get_process_group_ranks(place.group)
        for name, place in places.items()
    }


def passed_around(parallel: ContextParallel, lengths: list[int]) -> list[tuple[int, torch.Tensor]]:
    """The tensor of each rank of the ring, which holds its number."""
    own = torch.full((2, lengths[parallel.ring.rank], 1, 3), float(parallel.ring.rank))
    with closing(pass_around(parallel.ring, [own], lengths)) as passing:
        return [(number, tensors[0]) for number, tensors in passing]


def passed_around_after_failure(parallel: ContextParallel) -> list[tuple[int, torch.Tensor]]:
    """The same, after all ranks failed with an exchange under way."""

    def fail() -> None:
        own = torch.full((2, 4, 1, 3), -1.0)
        with closing(pass_around(parallel.ring, [own], [4] * parallel.ring.size)) as passing:
            next(passing)
            raise MemoryError("no room")

    with suppress(MemoryError):
        fail()
    return passed_around(parallel, [4] * parallel.ring.size)


def passed_to_idle_ranks(parallel: ContextParallel, timeout: timedelta) -> str | None:
    """Why rank 0 cannot pass a tensor around a ring whose other ranks do nothing; None on these."""
    divided = divide(CPU, parallel.size, ring_degree=parallel.ring.size, timeout=timeout)
    if not divided.is_leader:
        return None
    try:
        passed_around(divided, [4] * divided.ring.size)
    except RuntimeError as error:
        return str(error)
    return "nothing"


def timeouts(parallel: ContextParallel, timeout: timedelta) -> dict[str, timedelta]:
    """How long the ranks of each new process group of a ring with shared weights, and of blocks, wait."""
    ranks = divide(CPU, 2, ring_degree=2, shard_weights=True, timeout=timeout)
    four = divide(CPU, 4, ring_degree=2, timeout=timeout)
    assert four.cfg_branch is not None
    groups = {
        "group": ranks.group,
        "ring": ranks.ring.group,
        "weights": ranks.weights_group,
        "heads": four.heads.group,
        "branch": four.cfg_branch.group,
        "counterparts": four.cfg_branch.cfg_group,
        "block": divide_into_blocks(CPU, timeout=timeout).wider[0].group,
    }
    backends = {name: group._get_backend(CPU) for name, group in groups.items() if group}
    return {name: backend.options._timeout for name, backend in backends.items()}


def refused_ring(parallel: ContextParallel, ring_degree: int) -> str:
    """Why these ranks cannot have a ring of a size."""
    try:
        divide(CPU, parallel.size, ring_degree=ring_degree)
    except GroupError as error:
        return str(error)
    return "nothing"


def compiled_velocity(parallel: ContextParallel, case: str, backend: str) -> torch.Tensor:
    """The same with the blocks' parts compiled by a backend."""
    dit = parity_cases.dit_for(case)
    compile_blocks(dit, backend)
    return parity_cases.velocity(case, parallel, dit)[0]


def compile_blocks(dit: Dit, backend: str) -> None:
    """Have the blocks' parts compiled by a backend. A part that it cannot compile is an error."""

    def fail(part: str) -> None:
        raise AssertionError(f"{part} is not compiled")

    with patch("model.transformer.compile.torch.compile", partial(torch.compile, backend=backend)):
        fuse(dit, "on", fail)


def has_conditioner(parallel: ContextParallel, checkpoint: Path) -> bool:
    return Pipeline.load(checkpoint, torch.float32, parallel).conditioner is not None


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


def first_step(parallel: ContextParallel, checkpoint: Path, request: Request, resume: State) -> State:
    """The state after the first step of a job that resumes; followers are not given its state."""
    pipeline = Pipeline.load(checkpoint, torch.float32, parallel)
    events = pipeline.generate(request, resume if parallel.is_leader else None)
    return next(event.state for event in events if isinstance(event, Stepped))


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
    parallel: ContextParallel,
    checkpoint: Path,
    requests: list[Request],
    dtype: torch.dtype,
    quantize: Quantize,
) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """The latents of requests, one after the other, without sharing weights and with it."""
    if not parallel.is_leader:
        requests = [dataclasses.replace(request, image=None, video=None) for request in requests]
    whole = Pipeline.load(checkpoint, dtype, parallel, quantize=quantize)
    for parameter in whole.dit.parameters():
        # Weights in the dtype of the file are views of it. Products on a CPU round by the alignment of their
        # factors, so give the weights the one of an allocation.
        parameter.data = parameter.data.clone()
    shards = Pipeline.load(checkpoint, dtype, sharded(parallel), quantize=quantize)
    return list(zip(latents_of(whole, requests), latents_of(shards, requests), strict=True))


def blocks_of(pipeline: Pipeline) -> ShardedBlocks[Block]:
    blocks = pipeline.dit.block_weights
    assert isinstance(blocks, ShardedBlocks)
    return blocks


def held_bytes(
    parallel: ContextParallel, checkpoint: Path, dtype: torch.dtype, quantize: Quantize
) -> dict[str, int]:
    """The memory of the transformer on a rank that shares weights, and without sharing."""
    whole, shards = (
        Pipeline.load(checkpoint, dtype, ranks, quantize=quantize) for ranks in (parallel, sharded(parallel))
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


@contextmanager
def recorded_reads() -> Iterator[list[str]]:
    """Collect the names of the tensors that are read from checkpoints."""
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
        yield read


def tensors_read(
    parallel: ContextParallel, checkpoint: Path, memory: WeightMemory | None = None
) -> dict[str, list[str]]:
    """The tensors that this rank reads when it loads the transformer, and when it merges a LoRA.

    With `memory`, also those that it reads to prepare all LoRAs before.
    """
    with recorded_reads() as read:
        pipeline = Pipeline.load(checkpoint, torch.float32, sharded(parallel))
        loaded = [name for name in read if name in pipeline.dit.state_dict()]
        read.clear()
        if memory:
            pipeline.lora.prepare(memory)
        prepared = list(read)
        read.clear()
        pipeline.lora.switch("cfg_step_lora")
    return {"loaded": loaded, "prepared": prepared, "merged": read}


def shared_blocks(parallel: ContextParallel, checkpoint: Path, memory: WeightMemory) -> dict[str, object]:
    """What this rank reads and keeps of streamed blocks.

    `names` are those of all tensors of the blocks. This rank reads `read` of them when it loads the
    transformer, and the tensors `merged` to merge a LoRA. Of the blocks it keeps `own_bytes` in memory that
    other processes do not have.
    """
    with recorded_reads() as read:
        pipeline = Pipeline.load(checkpoint, torch.float32, parallel, stream_weights=True, memory=memory)
        blocks = pipeline.dit.block_weights
        assert isinstance(blocks, StreamedBlocks)
        loaded = [name for name in read if name in blocks.streamed]
        read.clear()
        pipeline.lora.switch("cfg_step_lora")
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for each in blocks._sources
        for x in each.values()
    }
    return {
        "names": list(blocks.streamed),
        "read": loaded,
        "merged": read,
        "own_bytes": sum(size for address, size in storages.items() if not is_shared(address)),
    }


def is_shared(address: int) -> bool:
    """Whether an address is in memory that other processes of the machine map, too."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, *_ = line.split()
        first, last = (int(each, 16) for each in addresses.split("-"))
        if first <= address < last:
            return permissions.endswith("s")
    raise AssertionError(address)


def with_shared_blocks(
    parallel: ContextParallel, checkpoint: Path, memory: WeightMemory, requests: list[Request]
) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    """The latents of requests, with weights on the device and with streamed blocks that the ranks share."""
    resident = Pipeline.load(checkpoint, torch.bfloat16, parallel)
    for parameter in resident.dit.parameters():
        parameter.data = parameter.data.clone()  # as in `with_and_without_sharding`
    streamed = Pipeline.load(checkpoint, torch.bfloat16, parallel, stream_weights=True, memory=memory)
    return latents_of(resident, requests), latents_of(streamed, requests)


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
    quantize: Quantize,
    memory: WeightMemory | None = None,
) -> list[dict[str, bool]]:
    """Whether each weight equals that of a rank without sharing, after each of several changes of LoRA.

    With `memory`, the ranks that share take merged weights from there.
    """
    whole, shards = (
        Pipeline.load(checkpoint, torch.bfloat16, ranks, quantize=quantize)
        for ranks in (parallel, sharded(parallel))
    )
    if memory:
        shards.lora.prepare(memory)
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
