"""Show that each promise of `docs/gpus.md` holds: `python -m benchmarks.promises > benchmarks/promises.md`.

Each video of the page runs on the meta device, with the fewest GPUs of each row: the whole job of the leader
of the group, and that of the next rank, under the limit of the smallest GPU of the page that promises it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hollow_checkpoint import write_hollow
from benchmarks.job_memory import job_peaks
from benchmarks.peak_memory import GB
from docs.gpus_page import released_plans, released_sizes, table
from model.spec.memory import CheckpointSizes, Setup, memory_needed
from model.spec.plan import Plan

_INTRODUCTION = """\
# Promises about memory

What `python -m benchmarks.promises` prints. For each video that
[which GPU makes which video](../docs/gpus.md) promises, a whole job runs on PyTorch's meta device: a
checkpoint with the released shapes is loaded, prompts are encoded, and the video is conditioned, denoised in
two steps, refined and decoded by the code that runs on a GPU. Nothing is computed or compiled. The peak is
the largest sum of the tensors that are alive at once after loading. The limit is the memory of the smallest
GPU that the page names, without the 2 GiB that are left to CUDA; a job that needed more would fail. GB are
10⁹ bytes.

The predictions are those by which the service refuses a video that does not fit. The leader is the rank with
the text encoder; the other one is the next rank of its group.

"""
_HEAD = (
    "video",
    "precision",
    "weights",
    "GPUs",
    "text encoder",
    "limit, GB",
    "leader: peak, GB",
    "predicted, GB",
    "difference",
    "other rank: peak, GB",
    "predicted, GB",
    "difference",
)


@dataclass(frozen=True)
class Promise:
    """A video that fits into some GPUs, the memory of which is the limit."""

    video: str
    plan: Plan
    precision: str
    weights: str
    setup: Setup
    limit_bytes: int


def promises(sizes: CheckpointSizes) -> list[Promise]:
    """Return all promises of the page, each for the smallest GPU for which it is made."""
    plans = released_plans()
    found: dict[tuple[str, Setup], Promise] = {}
    for row in table(sizes, plans):
        for video, setup in row.fewest.items():
            if setup is not None:
                weights = row.weights if setup.shard_weights or setup.stream_weights else "whole"
                promise = Promise(
                    video, plans[video], row.precision, weights, setup, row.gpus.available_bytes
                )
                found.setdefault((video, setup), promise)
    return list(found.values())


def document(checkpoint: Path) -> Iterator[str]:
    """Yield the page piece by piece, given a hollow checkpoint."""
    sizes = released_sizes()
    yield _INTRODUCTION
    yield _line(_HEAD)
    yield _line(["---"] * len(_HEAD))
    for promise in promises(sizes):
        peaks = job_peaks(checkpoint, promise.plan, promise.setup, promise.limit_bytes)
        cells = [
            promise.video,
            promise.precision,
            promise.weights,
            str(promise.setup.ranks),
            promise.setup.text_encoder,
            f"{promise.limit_bytes / GB:.2f}",
        ]
        for is_leader, peak in zip((True, False), peaks, strict=False):
            needed = memory_needed(sizes, promise.plan, promise.setup, is_leader=is_leader).total
            difference = peak.size_bytes / needed - 1
            cells += [f"{peak.size_bytes / GB:.2f}", f"{needed / GB:.2f}", f"{difference:+.1%}"]
        yield _line([*cells, *["–"] * (len(_HEAD) - len(cells))])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Print the page."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder)
        write_hollow(checkpoint)
        for piece in document(checkpoint):
            print(piece, end="", flush=True)


if __name__ == "__main__":
    main()
