"""Weights of blocks that stay in the memory of the host give exactly the result of weights on the device."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

import pytest
import torch

from model.pipeline.events import Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.spec.errors import DeviceError
from model.spec.limits import load_limits
from model.spec.memory import Setup, transformer_bytes
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.tiny import DIT, write_tiny
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.quantise import quantise_blocks
from model.transformer.streamed_blocks import StreamedBlocks, ThreadCopier, lock_pages
from tests.model.rank_jobs import latents_of
from tests.model.spec.test_memory import QUANTIZE, RELEASED

DEPTH = 5
META = torch.device("meta")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("five_blocks")
    write_tiny(folder, config=dataclasses.replace(DIT, depth=DEPTH))
    return folder


@pytest.fixture(scope="module")
def request_of(checkpoint):
    limits = load_limits(checkpoint)

    def make(**options):
        params = GenerationParams(**{"num_frames": 9, "num_inference_steps": 2, **options})
        return Request(resolve(params, Inputs(), limits), ("a cat",), seed=3)

    return make


def load(checkpoint, dtype=torch.bfloat16, **options):
    return Pipeline.load(checkpoint, dtype, **options)


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_latents_are_bit_equal_to_those_of_weights_on_the_device(checkpoint, request_of, quantize):
    requests = [
        request_of(),
        request_of(distilled=True, num_inference_steps=None),
        request_of(refine=True, spatial_refine_only=True, num_frames=5),
        request_of(),
    ]
    resident, streams = (
        load(checkpoint, quantize=quantize, stream_weights=stream) for stream in (False, True)
    )
    for parameter in resident.dit.parameters():
        # Those in the dtype of the file are views of it, whose alignment changes how a CPU rounds.
        parameter.data = parameter.data.clone()
    streamed = latents_of(streams, requests)
    for expected, ours in zip(latents_of(resident, requests), streamed, strict=True):
        assert expected
        assert all(map(torch.equal, expected, ours))
    assert torch.equal(streamed[0][0], streamed[-1][0])  # the base again, after the LoRAs


@pytest.mark.parametrize("is_prepared", [False, True])
@pytest.mark.parametrize("quantize", QUANTIZE)
def test_weights_after_each_change_of_lora_are_those_on_the_device(
    checkpoint, lora_memory, quantize, is_prepared
):
    resident, streamed = (
        load(checkpoint, quantize=quantize, stream_weights=stream) for stream in (False, True)
    )
    if is_prepared:
        streamed.lora.prepare(lora_memory, "weights")
    for name in ("cfg_step_lora", "refinement_lora", None):
        for pipeline in (resident, streamed):
            pipeline.lora.switch(name)
        with streamed.dit.block_weights.in_order() as blocks:
            for block, expected in zip(blocks, resident.dit.blocks, strict=True):
                for path, tensor in block.state_dict().items():
                    assert torch.equal(tensor.float(), expected.state_dict()[path].float()), (name, path)


def test_device_has_two_slots_for_all_blocks(checkpoint):
    pipeline = load(checkpoint, stream_weights=True)
    slots = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for parameter in pipeline.dit.blocks.parameters()
    }
    whole = load(checkpoint)
    block_bytes = sum(tensor.nbytes for tensor in whole.dit.blocks[0].state_dict().values())
    assert len(slots) == 2
    assert all(block_bytes <= size < block_bytes + 256 * 100 for size in slots.values())


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_predicted_memory_is_near_that_of_the_released_weights(quantize):
    with META:
        dit = Dit(DitConfig(), torch.bfloat16)
        outside = sum(
            tensor.nbytes for name, tensor in dit.state_dict().items() if not name.startswith("blocks.")
        )
        quantise_blocks(dit, quantize)
        blocks = StreamedBlocks("blocks", dit.blocks, META, ThreadCopier())
    held = outside + sum(slot.nbytes for slot in blocks._slots)
    predicted = transformer_bytes(RELEASED, Setup(quantize=quantize, stream_weights=True))
    assert predicted == pytest.approx(held, rel=0.05)
    assert held < 1.3e9


class RecordingCopier(ThreadCopier):
    """Records when copies begin and when they are waited for."""

    def __init__(self, done):
        super().__init__()
        self.done = done
        self.count = 0

    def start(self, source, target):
        number, self.count = self.count % DEPTH, self.count + 1
        self.done.append(("copy", number))
        fetch, done = super().start(source, target), self.done

        class Waiting:
            def wait(self):
                done.append(("wait", number))
                fetch.wait()

        return Waiting()


def test_each_block_is_copied_while_the_one_before_computes(checkpoint, request_of):
    pipeline = load(checkpoint, stream_weights=True)
    done: list[tuple[str, int]] = []
    pipeline.dit.block_weights._copier = RecordingCopier(done)
    for number, block in enumerate(pipeline.dit.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: done.append(("compute", number)))
    for event in pipeline.generate(request_of(guidance_scale=1.0)):
        if isinstance(event, Stepped):
            break
    forward = done[2 * DEPTH :]  # before, the keys of the text
    expected = [("copy", 0), ("wait", 0)]
    for number in range(DEPTH - 1):
        expected += [("copy", number + 1), ("compute", number), ("wait", number + 1)]
    assert forward == [*expected, ("compute", DEPTH - 1)]


def test_job_after_one_that_failed_between_blocks_gives_the_same_latents(checkpoint, request_of):
    pipeline = load(checkpoint, stream_weights=True)
    (before,) = latents_of(pipeline, [request_of()])

    def fail(*_):
        raise MemoryError("no room")

    with pipeline.dit.blocks[1].register_forward_pre_hook(fail), suppress(MemoryError):
        latents_of(pipeline, [request_of()])
    (after,) = latents_of(pipeline, [request_of()])
    assert all(map(torch.equal, before, after))


def test_copy_that_fails_is_an_error_of_the_block(checkpoint, request_of):
    pipeline = load(checkpoint, stream_weights=True)
    buffers = pipeline.dit.block_weights._buffers
    buffers[2] = torch.empty_like(buffers[2], device=META)  # has no content that could be copied
    with pytest.raises(RuntimeError):
        latents_of(pipeline, [request_of()])


@pytest.mark.parametrize("status", [0, 2])
def test_pages_that_cuda_cannot_lock_are_an_error(monkeypatch, status):
    locked = []

    class Runtime:
        def cudaHostRegister(self, pointer, size, flags):  # noqa: N802 - CUDA's name
            locked.append((pointer, size, flags))
            return status

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    buffer = torch.empty(3 << 20, dtype=torch.uint8)
    if status:
        with pytest.raises(DeviceError, match="cannot lock 3 MiB more of host memory"):
            lock_pages(buffer)
    else:
        lock_pages(buffer)
    assert locked == [(buffer.data_ptr(), buffer.nbytes, 0)]
