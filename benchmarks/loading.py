"""Count what processes read and keep when they load one checkpoint: `python -m benchmarks.loading [DIR]`.

`read_bytes` of `/proc/PID/io` counts what came from the disk for a process, also through mapped files, and
`rchar` what it read with `read(2)`. Before a cold run, the files leave the page cache. `Pss_Anon` and
`Pss_Shmem` of `/proc/PID/smaps_rollup` count memory besides mapped files; what processes share is divided
among them. Without DIR, a random checkpoint is written to a temporary folder, which must be on a disk.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from model.pipeline.pipeline import Pipeline
from model.tiny import DIT, write_tiny
from model.transformer.lora import WeightMemory

MB = 1e6
MAX_BYTES = 1 << 40
CONFIG = replace(DIT, hidden_size=768, depth=8)


@dataclass(frozen=True)
class Reads:
    """What one process read while it loaded the checkpoint, and the memory that it keeps."""

    disk_bytes: int
    system_call_bytes: int
    duration_s: float
    kept_bytes: int


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
            _print("cold" if is_cold else "warm", measure(checkpoint, num_processes, is_cold=is_cold))
        for num_processes in (1, 2, 4):
            for name, shares in (("streamed, shared", True), ("streamed, a copy each", False)):
                _print(name, measure(checkpoint, num_processes, is_cold=False, streams=True, shares=shares))


def measure(
    checkpoint: Path, num_processes: int, *, is_cold: bool, streams: bool = False, shares: bool = False
) -> list[Reads]:
    """Load the checkpoint in several processes at the same time, which may stream blocks and share them."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(num_processes)]
    descriptor = os.memfd_create("weights")
    memory = WeightMemory(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), MAX_BYTES, str(checkpoint))
    load = partial(
        Pipeline.load, checkpoint, torch.float32, stream_weights=streams, memory=memory if shares else None
    )
    processes = [context.Process(target=_load, args=(load, there)) for _, there in pipes]
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
    for here, _ in pipes:
        here.recv()  # the process has loaded the checkpoint
    for here, _ in pipes:
        here.send("count")
    reads = [here.recv() for here, _ in pipes]
    for here, _ in pipes:
        here.send("end")  # what ended processes shared would count fully for the others
    for process in processes:
        process.join()
    os.close(descriptor)
    return reads


def _load(load: Callable[[], Pipeline], parent: Connection) -> None:
    parent.send("ready")
    parent.recv()
    before, began = _counters(), time.perf_counter()
    loaded = load()
    duration_s, after = time.perf_counter() - began, _counters()
    parent.send("loaded")
    parent.recv()
    disk, calls = (after[name] - before[name] for name in ("read_bytes", "rchar"))
    parent.send(Reads(disk, calls, duration_s, _kept_bytes() - before["kept"]))
    parent.recv()
    del loaded


def _counters() -> dict[str, int]:
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {"kept": _kept_bytes(), **{name: int(value) for name, value in lines}}


def _kept_bytes() -> int:
    """Return the memory of this process besides mapped files and what it has freed."""
    ctypes.CDLL(None).malloc_trim(0)  # returns to the system what was freed
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem")))


def _drop_from_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _files(checkpoint: Path) -> Iterator[Path]:
    return (path for path in checkpoint.rglob("*") if path.is_file())


def _print(name: str, reads: list[Reads]) -> None:
    disk, kept = (sum(each) / MB for each in zip(*((x.disk_bytes, x.kept_bytes) for x in reads), strict=True))
    calls = ", ".join(f"{each.system_call_bytes / MB:.1f}" for each in reads)
    slowest = max(each.duration_s for each in reads)
    print(
        f"{len(reads)} processes, {name}: {disk:.1f} MB from the disk, read(2) {calls} MB, "
        f"{kept:.1f} MB kept, {slowest:.1f} s"
    )


if __name__ == "__main__":
    main()
