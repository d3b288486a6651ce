"""Ranks that share the weights of the blocks give exactly the result of ranks that hold all of them."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from model.parallel.mesh import ContextParallel, divide
from model.parallel.sharded_blocks import ShardedBlocks, start_gather
from model.pipeline.events import Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.sizes import read_sizes
from model.spec.geometry import Clip, Size
from model.spec.limits import load_limits
from model.spec.memory import Quantize, Setup, transformer_bytes
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.transformer.block import Block
from model.transformer.compile import fuse
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.lora import WeightMemory, read_lora
from model.transformer.quantise import LAYERS, quantise_blocks
from tests.model import rank_jobs
from tests.model.parity_cases import CPU
from tests.model.rank_jobs import CountedWork, latents_of, recorded_reads, sharded
from tests.model.spec.test_memory import QUANTIZE, RELEASED

DEPTH = 5
"""Blocks of the checkpoint: each slot is used again, and fp8 quantises some."""

SIZES = [2, 4]
ALIGNED = 256
META = torch.device("meta")


@pytest.fixture(scope="module")
def checkpoint(five_block_checkpoint):
    return five_block_checkpoint


@pytest.fixture(scope="module")
def request_of(checkpoint):
    limits = load_limits(checkpoint)

    def make(*prompts, image=None, video=None, step_cache=None, **options):
        few_steps = {"num_inference_steps": 2, "enhance_hf": False}
        params = GenerationParams(**{"num_frames": 9, **few_steps, **options})
        inputs = Inputs(
            image=None if image is None else Size(*image.shape[:2]),
            video=None if video is None else Clip(video.shape[1], video.shape[2], len(video)),
        )
        plan = resolve(params, inputs, limits, **({} if step_cache is None else {"step_cache": step_cache}))
        return Request(plan, prompts or ("a cat",), seed=3, image=image, video=video)

    return make


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def requests(request_of):
    """Every way to use the weights, with changes of LoRA between them, and the first one again."""
    base = request_of()
    return [
        base,
        request_of(image=pixels(64, 96, 3)),
        request_of(video=pixels(5, 64, 96, 3), num_condition_frames=5),
        request_of(distilled=True, num_inference_steps=None),
        request_of(refine=True, spatial_refine_only=True, num_frames=5),
        request_of(quality="balanced", num_inference_steps=6, step_cache=0.4),
        base,
    ]


def assert_equal(with_and_without):
    for whole, shards in with_and_without:
        assert whole
        for expected, ours in zip(whole, shards, strict=True):
            assert torch.equal(expected, ours)


@pytest.mark.parametrize("size", SIZES)
def test_latents_are_bit_equal_to_those_without_sharding(ranks, size, checkpoint, requests):
    for answer in ranks.run(
        rank_jobs.with_and_without_sharding, size, checkpoint, requests, torch.float32, "none"
    ):
        assert_equal(answer)
        assert torch.equal(answer[0][1][0], answer[-1][1][0])  # the base again, after the LoRAs


@pytest.mark.parametrize("size", SIZES)
def test_new_prompt_is_projected_by_all_ranks_although_half_of_them_have_the_negative_prompt_only(
    ranks, size, checkpoint, request_of
):
    segments = {"num_segments": 2, "num_condition_frames": 5}
    requests = [request_of(), request_of("a dog"), request_of("a cat", "a dog", **segments)]
    for answer in ranks.run(
        rank_jobs.with_and_without_sharding, size, checkpoint, requests, torch.float32, "none"
    ):
        assert_equal(answer)
        assert not torch.equal(answer[0][1][0], answer[1][1][0])


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_latents_of_bf16_and_quantised_weights_are_bit_equal_to_those_without_sharding(
    ranks, checkpoint, request_of, quantize
):
    requests = [request_of(distilled=True, num_inference_steps=None), request_of()]
    for answer in ranks.run(
        rank_jobs.with_and_without_sharding, 2, checkpoint, requests, torch.bfloat16, quantize
    ):
        assert_equal(answer)


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


@pytest.mark.integration
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_latents_of_compiled_blocks_are_bit_equal_to_those_without_sharding(
    ranks, checkpoint, request_of, backend
):
    request = request_of(distilled=True, num_inference_steps=None)
    for answer in ranks.run(compiled_with_and_without_sharding, 2, checkpoint, request, backend):
        assert_equal([answer])


def blocks_of(pipeline: Pipeline) -> ShardedBlocks[Block]:
    blocks = pipeline.dit.block_weights
    assert isinstance(blocks, ShardedBlocks)
    return blocks


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


@pytest.mark.parametrize("is_prepared", [False, True])
@pytest.mark.parametrize("quantize", QUANTIZE)
def test_weights_after_each_change_of_lora_are_bit_equal_to_those_without_sharding(
    ranks, checkpoint, weight_memory, quantize, is_prepared
):
    names = [None, "cfg_step_lora", "refinement_lora", None, "refinement_lora", "cfg_step_lora", None]
    memory = weight_memory if is_prepared else None
    for answer in ranks.run(weights_after_switches, 3, checkpoint, names, quantize, memory):
        assert len(answer) == len(names)
        assert all(all(equal.values()) for equal in answer)


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


@pytest.mark.parametrize(
    ("size", "quantize"),
    [
        *((size, "none") for size in (2, 3, 4)),
        *((3, quantize) for quantize in QUANTIZE[1:]),
        *(pytest.param(size, each, marks=pytest.mark.integration) for size in SIZES for each in QUANTIZE[1:]),
    ],
)
def test_rank_holds_its_part_and_two_blocks(ranks, size, checkpoint, quantize):
    for found in ranks.run(held_bytes, size, checkpoint, torch.bfloat16, quantize):
        blocks = found["blocks"] / size + 2 * found["largest block"]
        padding = ALIGNED * (found["tensors"] + DEPTH + 2 * size)
        assert 0 <= found["held"] - found["outside"] - blocks <= padding


def test_predicted_memory_is_near_what_a_rank_holds(ranks, checkpoint):
    for size in SIZES:
        predicted = transformer_bytes(read_sizes(checkpoint), Setup(size, 4, shard_weights=True))
        for found in ranks.run(held_bytes, size, checkpoint, torch.float32, "none"):
            assert predicted == pytest.approx(found["held"], rel=0.05)


@pytest.mark.parametrize(
    ("size", "quantize", "documented_gb"),
    [
        *((2, "none", 15.4), (4, "none", 8.3), (8, "none", 4.8)),
        *((2, "fp8", 10.0), (4, "fp8", 5.6), (8, "fp8", 3.4)),
        (4, "int8", 5.6),
    ],
)
def test_released_transformer_takes_the_documented_memory(monkeypatch, size, quantize, documented_gb):
    """`docs/groups.md` has the table."""
    monkeypatch.setattr(dist, "get_world_size", lambda _: size)
    monkeypatch.setattr(dist, "get_rank", lambda _: size - 1)
    with META:
        dit = Dit(DitConfig(), torch.bfloat16)
    quantise_blocks(dit, LAYERS.get(quantize))
    tensors = dit.state_dict().items()
    group = cast(Any, dist.ProcessGroup)(0, size)
    outside = sum(tensor.nbytes for name, tensor in tensors if not name.startswith("blocks."))
    blocks = ShardedBlocks("blocks", dit.blocks, group, META)
    held = outside + sum(buffer.nbytes for buffer in (*blocks._shards, *blocks._slots))
    assert round(held / 1e9, 1) == documented_gb
    if quantize == "none":
        predicted = transformer_bytes(RELEASED, Setup(size, shard_weights=True))
        assert predicted == pytest.approx(held, rel=0.05)


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


def test_ranks_read_only_what_they_hold(ranks, checkpoint):
    answers = ranks.run(tensors_read, 4, checkpoint)
    loaded = [{name for name in answer["loaded"] if name.startswith("blocks.")} for answer in answers]
    merged = [set(answer["merged"]) for answer in answers]
    for read in (loaded, merged):
        every = set.union(*read)
        assert {name.split(".")[1] for name in every if name.startswith("blocks.")} == set(
            map(str, range(DEPTH))
        )
        # A rank has a quarter of each block. Tensors at the borders of the quarters are read twice.
        assert sum(map(len, read)) < 2 * len(every)
    assert all(len(answer["loaded"]) == len(set(answer["loaded"])) for answer in answers)


def test_ranks_read_each_weight_once_together_to_prepare_loras_and_none_to_switch(
    ranks, checkpoint, weight_memory
):
    answers = ranks.run(tensors_read, 4, checkpoint, weight_memory)
    read = [name for answer in answers for name in answer["prepared"]]
    named = {f"{name}.weight" for name in all_modules(checkpoint)}
    assert sorted(read) == sorted(named)
    assert [answer["merged"] for answer in answers] == [[]] * 4


def all_modules(checkpoint):
    """The modules that any LoRA changes."""
    dit = Pipeline.load(checkpoint, torch.float32).dit
    files = (checkpoint / "lora").glob("*.safetensors")
    return {module for path in files for module in read_lora(path, dit).modules}


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


def test_each_block_is_gathered_once_while_the_one_before_computes(ranks, checkpoint, request_of):
    request = request_of(guidance_scale=1.0)
    for answer in ranks.run(gathers, 2, checkpoint, request):
        done = answer["done"]
        step = done[done.index("Encoded") + 1 : done.index("Stepped")]
        text, forward = step[:DEPTH], step[DEPTH:]
        (block_bytes,) = {size for kind, size in text if kind == "gather"}
        gather = ("gather", block_bytes)
        assert text == [gather] * DEPTH
        expected = [gather]
        for number in range(DEPTH):
            expected += [gather] * (number + 1 < DEPTH) + [("compute", number)]
        assert forward == expected


def test_gather_of_a_block_that_the_step_cache_skips_is_waited_for(ranks, checkpoint, request_of):
    request = request_of(quality="balanced", num_inference_steps=6, step_cache=0.99)
    for answer in ranks.run(gathers, 2, checkpoint, request, 2):
        done = answer["done"]
        second_step = done[done.index("Stepped") + 1 :]
        assert [kind for kind, *_ in second_step[:-1]] == ["gather", "gather", "compute"]
        assert len(answer["waited"]) == 2 * DEPTH + 2  # for the text, and for both steps
        assert all(answer["waited"])


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


def test_job_after_one_that_failed_between_blocks_gives_the_same_latents(ranks, checkpoint, request_of):
    for before, after in ranks.run(forward_after_failure, 2, checkpoint, request_of()):
        assert torch.equal(before, after)


def weights_of_replicas(parallel: ContextParallel) -> list[int]:
    """The ranks that share weights with this one."""
    shared = divide(CPU, parallel.size, shard_weights=True).weights_group
    assert shared is not None
    assert shared is not parallel.group
    return dist.get_process_group_ranks(shared)


def test_ranks_of_each_group_share_weights_in_a_process_group_of_their_own(ranks):
    assert ranks.run(weights_of_replicas, 4) == [[0, 1, 2, 3]] * 4
