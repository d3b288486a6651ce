"""Ranks that stream blocks share one copy of them, and give exactly the result of weights on the device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.parallel.mesh import ContextParallel
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.sizes import read_prepared_bytes, read_sizes
from model.spec.limits import load_limits
from model.spec.memory import Setup, host_needed
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.transformer.lora import WeightMemory
from model.transformer.streamed_blocks import StreamedBlocks
from tests.model.rank_jobs import latents_of, recorded_reads


@pytest.fixture(scope="module")
def checkpoint(five_block_checkpoint):
    return five_block_checkpoint


@pytest.fixture(scope="module")
def requests(checkpoint):
    """Jobs with changes of LoRA between them, and the first one again."""
    limits = load_limits(checkpoint)
    base, distilled = {"num_inference_steps": 2}, {"distilled": True}
    refined = {**base, "refine": True, "spatial_refine_only": True}
    return [
        Request(resolve(GenerationParams(num_frames=5, **options), Inputs(), limits), ("a cat",), seed=3)
        for options in (base, distilled, refined, base)
    ]


def is_shared(address: int) -> bool:
    """Whether an address is in memory that other processes of the machine map, too."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, *_ = line.split()
        first, last = (int(each, 16) for each in addresses.split("-"))
        if first <= address < last:
            return permissions.endswith("s")
    raise AssertionError(address)


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


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_stream_read_each_weight_once_together_and_keep_it_once(
    ranks, checkpoint, weight_memory, size
):
    answers = ranks.run(shared_blocks, size, checkpoint, weight_memory)
    read = [name for answer in answers for name in answer["read"]]
    assert sorted(read) == sorted(answers[0]["names"])
    assert [answer["merged"] for answer in answers] == [[]] * size
    assert [answer["own_bytes"] for answer in answers] == [0] * size
    kept = 512 * weight_memory.path.stat().st_blocks
    setup = Setup(size, element_bytes=4, stream_weights=True)
    assert read_prepared_bytes(checkpoint, setup) == pytest.approx(kept, rel=0.02)


def test_ranks_without_memory_for_all_keep_a_copy_each(ranks, checkpoint, weight_memory):
    memory = dataclasses.replace(weight_memory, max_bytes=1 << 16)
    answers = ranks.run(shared_blocks, 2, checkpoint, memory)
    setup = Setup(2, element_bytes=4, stream_weights=True)
    copies = host_needed(read_sizes(checkpoint), setup, num_ranks=2, num_leaders=0).block_copies
    assert copies == pytest.approx(sum(answer["own_bytes"] for answer in answers), rel=0.02)
    for answer in answers:
        assert sorted(answer["read"]) == sorted(answer["names"])
        assert answer["merged"]
    assert weight_memory.path.stat().st_size == 0


def with_shared_blocks(
    parallel: ContextParallel, checkpoint: Path, memory: WeightMemory, requests: list[Request]
) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    """The latents of requests, with weights on the device and with streamed blocks that the ranks share."""
    resident = Pipeline.load(checkpoint, torch.bfloat16, parallel)
    for parameter in resident.dit.parameters():
        parameter.data = parameter.data.clone()  # as in `with_and_without_sharding`
    streamed = Pipeline.load(checkpoint, torch.bfloat16, parallel, stream_weights=True, memory=memory)
    return latents_of(resident, requests), latents_of(streamed, requests)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.integration)])
def test_latents_of_ranks_that_share_streamed_blocks_are_bit_equal(
    ranks, checkpoint, weight_memory, requests, size
):
    for resident, streamed in ranks.run(with_shared_blocks, size, checkpoint, weight_memory, requests):
        for expected, ours in zip(resident, streamed, strict=True):
            assert expected
            assert all(map(torch.equal, expected, ours))
