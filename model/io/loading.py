"""What it costs to load a checkpoint: seconds and memory, for the log.

The command line and a worker's rank load their pipeline through `measured`. It knows nothing of checkpoints.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

Made = TypeVar("Made")
KIB = 1024


@dataclass(frozen=True)
class Cost:
    """Seconds, and the most memory that was ever in use: the device's on CUDA, else the process's."""

    duration_s: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"in {self.duration_s:.1f} s, with {self.peak_bytes / 1e9:.2f} GB of memory at most"


def measured(load: Callable[[], Made], device: torch.device) -> tuple[Made, Cost]:
    """What `load` returns, and what it cost."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    made = load()
    return made, Cost(time.perf_counter() - started, _peak_bytes(device))


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB  # Linux counts in KiB
