"""Seconds on a device, and what the device can do at most: nothing here knows of the model.

`benchmarks.gpu_cases` measures with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median

import torch

Work = Callable[[], object]

WARM_UPS = 2
TERA, GIGA = 1e12, 1e9


def seconds(work: Work, device: torch.device) -> float:
    """How long it takes once: by the device's own clock where it has one."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    taken_ms: float = first.elapsed_time(last)
    return taken_ms / 1000


def medians(works: Mapping[str, Work], device: torch.device, rounds: int) -> dict[str, float]:
    """Return the median time of each, measured in turn (A-B-A-B): a warming device slows all alike."""
    for work in works.values():
        for _ in range(WARM_UPS):
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work, device))
    return {name: median(times) for name, times in taken.items()}


def ceilings(
    device: torch.device, side: int = 8192, copied_bytes: int = 1 << 30
) -> Iterator[tuple[str, float]]:
    """Measure this machine: TFLOP/s of a square matrix product in bf16 (and fp8), GB/s of a copy."""
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def median_s(work: Work) -> float:
        return medians({"work": work}, device, rounds=10)["work"]

    flop = 2 * side**3
    yield "bf16 TFLOP/s", flop / median_s(lambda: a @ b) / TERA
    yield "copy GB/s", 2 * copied_bytes / median_s(lambda: target.copy_(source)) / GIGA
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        yield "fp8 TFLOP/s", flop / median_s(_fp8_product(a, b)) / TERA
        fast = _fp8_product(a, b, use_fast_accum=True)
        yield "fp8 with sums of fewer bits TFLOP/s", flop / median_s(fast) / TERA


def _fp8_product(a: torch.Tensor, b: torch.Tensor, *, use_fast_accum: bool = False) -> Work:
    """One scale for each row and column, as in the model; columns of the second are contiguous."""
    left, right = a.to(torch.float8_e4m3fn), b.t().contiguous().to(torch.float8_e4m3fn).t()
    scales = torch.ones(len(a), 1, device=a.device), torch.ones(1, b.shape[1], device=a.device)
    return lambda: torch._scaled_mm(  # noqa: SLF001
        left, right, *scales, out_dtype=torch.bfloat16, use_fast_accum=use_fast_accum
    )
