"""Count the bytes that processes read while they load one checkpoint: `python -m benchmarks.loading [DIR]`.

`read_bytes` of `/proc/PID/io` counts what came from the disk for a process, also through mapped files, and
`rchar` what it read with `read(2)`. Before a cold run, the files leave the page cache. Without DIR, a random
checkpoint is written to a temporary folder, which must be on a disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from model.pipeline.pipeline import Pipeline
from model.tiny import DIT, write_tiny

MB = 1e6
CONFIG = replace(DIT, hidden_size=768, depth=8)


@dataclass(frozen=True)
class Reads:
    """What one process read while it loaded the checkpoint."""

    disk_bytes: int
    system_call_bytes: int
    duration_s: float


def main() -> None:
    """Print a row for each number of processes, with a cold and with a warm page cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", metavar="DIR")
    checkpoint: Path | None = parser.parse_args().checkpoint
    with tempfile.TemporaryDirectory(prefix="longcat-loading-") as folder:
        if checkpoint is None:
            checkpoint = Path(folder)
            write_tiny(checkpoint, config=CONFIG)
        size = sum(path.stat().st_size for path in _files(checkpoint))
        print(f"checkpoint: {size / MB:.1f} MB")
        for num_processes, is_cold in ((1, True), (2, True), (2, False)):
            _print(measure(checkpoint, num_processes, is_cold=is_cold), is_cold=is_cold)


def measure(checkpoint: Path, num_processes: int, *, is_cold: bool) -> list[Reads]:
    """Load the checkpoint in several processes at the same time."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(num_processes)]
    processes = [context.Process(target=_load, args=(checkpoint, there)) for _, there in pipes]
    for process in processes:
        process.start()
    for here, _ in pipes:
        here.recv()  # the process has imported torch
    for path in _files(checkpoint):
        if is_cold:
            _drop_from_cache(path)
        else:
            path.read_bytes()
    for here, _ in pipes:
        here.send("load")
    reads = [here.recv() for here, _ in pipes]
    for process in processes:
        process.join()
    return reads


def _load(checkpoint: Path, parent: Connection) -> None:
    parent.send("ready")
    parent.recv()
    before, began = _counters(), time.perf_counter()
    Pipeline.load(checkpoint, torch.float32)
    duration_s, after = time.perf_counter() - began, _counters()
    parent.send(
        Reads(after["read_bytes"] - before["read_bytes"], after["rchar"] - before["rchar"], duration_s)
    )


def _counters() -> dict[str, int]:
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {name: int(value) for name, value in lines}


def _drop_from_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _files(checkpoint: Path) -> Iterator[Path]:
    return (path for path in checkpoint.rglob("*") if path.is_file())


def _print(reads: list[Reads], *, is_cold: bool) -> None:
    disk = sum(each.disk_bytes for each in reads) / MB
    calls = ", ".join(f"{each.system_call_bytes / MB:.1f}" for each in reads)
    slowest = max(each.duration_s for each in reads)
    state = "cold" if is_cold else "warm"
    print(
        f"{len(reads)} processes, {state}: {disk:.1f} MB from the disk, read(2) {calls} MB, {slowest:.1f} s"
    )


if __name__ == "__main__":
    main()
