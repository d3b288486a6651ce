"""Measure the time and memory that loading a checkpoint takes."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

Loaded = TypeVar("Loaded")
KIB = 1024


@dataclass(frozen=True)
class Cost:
    """Duration and peak memory: that of the device on CUDA, else that of the process since its start."""

    duration_s: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"in {self.duration_s:.1f} s, with {self.peak_bytes / 1e9:.2f} GB of memory at most"


def measured(load: Callable[[], Loaded], device: torch.device) -> tuple[Loaded, Cost]:
    """Return what `load` returns, and its cost."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    loaded = load()
    return loaded, Cost(time.perf_counter() - started, _peak_bytes(device))


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB  # Linux counts in KiB
