"""Weights of blocks that stay in the memory of the host give exactly the result of weights on the device."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.io.checkpoint import Weights
from model.pipeline.events import Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.spec.errors import DeviceError
from model.spec.limits import load_limits
from model.spec.memory import Setup, transformer_bytes
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.quantise import LAYERS, quantise_blocks
from model.transformer.streamed_blocks import Piece, StreamCopier, StreamedBlocks, ThreadCopier, lock_pages
from tests.model.rank_jobs import latents_of
from tests.model.spec.test_memory import QUANTIZE, RELEASED

DEPTH = 5
META = torch.device("meta")


@pytest.fixture(scope="module")
def checkpoint(five_block_checkpoint):
    return five_block_checkpoint


@pytest.fixture(scope="module")
def request_of(checkpoint):
    limits = load_limits(checkpoint)

    def make(**options):
        params = GenerationParams(**{"num_frames": 9, "num_inference_steps": 2, **options})
        return Request(resolve(params, Inputs(), limits), ("a cat",), seed=3)

    return make


def load(checkpoint, dtype=torch.bfloat16, **options):
    return Pipeline.load(checkpoint, dtype, **options)


def load_streamed(checkpoint, memory, is_shared=True, **options):
    """Stream blocks from the memory, or from a copy if they are not shared."""
    return load(checkpoint, stream_weights=True, memory=memory if is_shared else None, **options)


@pytest.fixture(scope="module")
def requests(request_of):
    """Jobs with changes of LoRA between them, and the first one again."""
    base, distilled = request_of(), request_of(distilled=True, num_inference_steps=None)
    return [base, distilled, request_of(refine=True, spatial_refine_only=True, num_frames=5), base]


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_latents_are_bit_equal_to_those_of_weights_on_the_device(
    checkpoint, weight_memory, requests, quantize
):
    resident = load(checkpoint, quantize=quantize)
    for parameter in resident.dit.parameters():
        # Those in the dtype of the file are views of it, whose alignment changes how a CPU rounds.
        parameter.data = parameter.data.clone()
    resident_latents = latents_of(resident, requests)
    for is_shared in (False, True):
        pipeline = load_streamed(checkpoint, weight_memory, is_shared, quantize=quantize)
        streamed = latents_of(pipeline, requests)
        for expected, ours in zip(resident_latents, streamed, strict=True):
            assert expected
            assert all(map(torch.equal, expected, ours))
        assert torch.equal(streamed[0][0], streamed[-1][0])  # the base again, after the LoRAs


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("quantize", QUANTIZE)
def test_weights_after_each_change_of_lora_are_those_on_the_device(
    checkpoint, weight_memory, quantize, is_shared
):
    resident = load(checkpoint, quantize=quantize)
    streamed = load_streamed(checkpoint, weight_memory, is_shared, quantize=quantize)
    for name in ("cfg_step_lora", "refinement_lora", "cfg_step_lora", None):
        for pipeline in (resident, streamed):
            pipeline.lora.switch(name)
        outside = streamed.dit.final_layer.state_dict()
        assert all(torch.equal(outside[x], y) for x, y in resident.dit.final_layer.state_dict().items())
        with streamed.dit.block_weights.in_order() as blocks:
            for block, expected in zip(blocks, resident.dit.blocks, strict=True):
                for path, tensor in block.state_dict().items():
                    assert torch.equal(tensor.float(), expected.state_dict()[path].float()), (name, path)


class Copies(TorchDispatchMode):
    """Counts the bytes that are copied from one tensor to another."""

    def __init__(self):
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "copy" in function.name() or "clone" in function.name():
            self.num_bytes += args[0].nbytes
        return function(*args, **(kwargs or {}))


def test_change_of_lora_copies_no_weight_of_blocks_that_are_shared(checkpoint, weight_memory):
    pipeline = load_streamed(checkpoint, weight_memory)
    for name in (None, "cfg_step_lora", "refinement_lora", None):
        with Copies() as copies:
            pipeline.lora.switch(name)
        outside = (
            pipeline.dit.x_embedder.proj.weight.nbytes,
            *(module.weight.nbytes for module in pipeline.dit.final_layer.modules() if is_linear(module)),
        )
        assert copies.num_bytes <= sum(outside)


def is_linear(module):
    return isinstance(module, torch.nn.Linear)


def test_shared_blocks_are_the_same_after_1000_changes_of_lora(checkpoint, weight_memory):
    pipeline = load_streamed(checkpoint, weight_memory)
    content = weight_memory.path.read_bytes()
    blocks = pipeline.dit.block_weights
    names, draws = [None, "cfg_step_lora", "refinement_lora"], random.Random(0)
    places: dict[str | None, list[dict[int, int]]] = {}
    for name in [*names, *draws.choices(names, k=995), *names[::-1]]:
        pipeline.lora.switch(name)
        of_name = [{start: x.data_ptr() for start, x in each.items()} for each in blocks._sources]
        assert places.setdefault(name, of_name) == of_name
    assert weight_memory.path.read_bytes() == content
    assert len({str(each) for each in places.values()}) == 3


def test_group_that_starts_again_reads_no_block(checkpoint, weight_memory, monkeypatch):
    load_streamed(checkpoint, weight_memory)
    read = []
    monkeypatch.setattr(Weights, "read", lambda _, name, *__: read.append(name))
    load_streamed(checkpoint, weight_memory)
    assert read == []


def test_blocks_without_loras_are_shared(checkpoint, weight_memory, request_of, tmp_path):
    plain = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, plain, ignore=shutil.ignore_patterns("lora"))
    (expected,), (ours,) = (
        latents_of(load_streamed(folder, weight_memory), [request_of()]) for folder in (plain, checkpoint)
    )
    assert all(map(torch.equal, expected, ours))


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
        quantise_blocks(dit, LAYERS.get(quantize))
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

    def start(self, pieces):
        number, self.count = self.count % DEPTH, self.count + 1
        self.done.append(("copy", number))
        fetch, done = super().start(pieces), self.done

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


def test_cuda_copies_a_block_after_its_slot_was_used_and_reports_it_when_all_pieces_have_arrived(monkeypatch):
    sources = [torch.full((3,), value, dtype=torch.uint8) for value in (1, 2)]
    targets = [torch.zeros_like(source) for source in sources]
    seen: list[tuple[str, list[int]]] = []

    class Stream:
        """Records what the targets have when the copies wait for others, and when others wait for them."""

        def __init__(self, device):
            pass

        def wait_stream(self, stream):
            seen.append(("wait", torch.cat(targets).tolist()))

        def record_event(self):
            seen.append(("record", torch.cat(targets).tolist()))

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", object)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    StreamCopier(META).start([Piece(*each) for each in zip(sources, targets, strict=True)])
    assert seen == [("wait", [0] * 6), ("record", [1] * 3 + [2] * 3)]


class VirtualStream:
    """A CUDA stream on a virtual clock: what it is given begins when all before it has ended."""

    def __init__(self, _device: torch.device) -> None:
        self.now_s = 0.0

    def wait_stream(self, other: VirtualStream) -> None:
        self.now_s = max(self.now_s, other.now_s)

    def record_event(self) -> float:
        return self.now_s

    def wait_event(self, event: float) -> None:
        self.now_s = max(self.now_s, event)


class VirtualDevice(TorchDispatchMode):
    """A device with two streams, whose copy engine takes a fixed time for each block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, copy_s: float, block_bytes: int) -> None:
        super().__init__()
        self.computing = self._current = VirtualStream(META)
        self._s_per_byte = copy_s / block_bytes
        monkeypatch.setattr(torch.cuda, "Stream", VirtualStream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self._current)
        monkeypatch.setattr(torch.cuda, "stream", self._on)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() == "aten::copy_":
            self._current.now_s += args[1].nbytes * self._s_per_byte
        return function(*args, **(kwargs or {}))

    @contextmanager
    def _on(self, stream: VirtualStream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before


NUM_BLOCKS = 48  # as in the released model


def forward_s(monkeypatch: pytest.MonkeyPatch, copy_s: float, compute_s: float) -> float:
    """Return how long a forward pass takes whose blocks are streamed by the real copier."""
    weights = [
        torch.nn.Linear(4, 4, bias=False).requires_grad_(requires_grad=False) for _ in range(NUM_BLOCKS)
    ]
    device = VirtualDevice(monkeypatch, copy_s, weights[0].weight.nbytes)
    blocks = StreamedBlocks("blocks", weights, torch.device("cpu"), StreamCopier(META))
    for number in range(NUM_BLOCKS):
        assert blocks.store(f"blocks.{number}.weight", torch.full((4, 4), float(number)))
    with device, blocks.in_order() as arrived:
        for number, block in enumerate(arrived):
            assert block.weight[0, 0] == number
            device.computing.now_s += compute_s
    return device.computing.now_s


@pytest.mark.parametrize("copy_s", [0.1, 0.5, 0.99])
def test_copies_that_are_faster_than_blocks_are_hidden_but_for_the_first(monkeypatch, copy_s):
    waited_s = forward_s(monkeypatch, copy_s, compute_s=1.0) - NUM_BLOCKS
    assert waited_s == pytest.approx(copy_s)
    assert 1 - waited_s / (NUM_BLOCKS * copy_s) >= 0.95


@pytest.mark.parametrize("copy_s", [1.0, 3.4])
def test_copies_that_are_slower_than_blocks_set_the_pace(monkeypatch, copy_s):
    assert forward_s(monkeypatch, copy_s, compute_s=1.0) == pytest.approx(NUM_BLOCKS * copy_s + 1.0)


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
    sources = pipeline.dit.block_weights._sources[2]
    sources[0] = torch.empty_like(sources[0], device=META)  # has no content that could be copied
    with pytest.raises(RuntimeError):
        latents_of(pipeline, [request_of()])


def test_weights_are_written_after_the_work_of_the_device_of_this_rank(monkeypatch):
    """The device that is current in another thread is the first one, which may be that of another rank."""
    waited_for = []

    class Stream:
        def __init__(self, device=None):
            self.device = device

        def synchronize(self):
            waited_for.append(self.device)

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    blocks = StreamedBlocks("blocks", [torch.nn.Linear(4, 4, bias=False)], META, ThreadCopier())
    blocks.keep_copies()
    blocks._is_on_cuda = True
    with ThreadPoolExecutor(1) as threads:
        threads.submit(blocks.store, "blocks.0.weight", torch.ones(4, 4)).result()
    assert waited_for == [META]


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
