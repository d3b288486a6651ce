"""Print the capability of a worker without its GPUs: `python -m worker.rank.capability CHECKPOINT`.

The service accepts jobs against this document while no worker is up (`CAPABILITY_FILE`). The command reads
the files of the checkpoint and the settings of the worker, so run it with the same settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from jobs.capability import Capability
from jobs.order import SCHEMA_VERSION
from model.io.fingerprint import fingerprints
from model.io.sizes import read_sizes
from model.spec.errors import CheckpointError
from model.spec.limits import load_limits
from model.spec.memory import GIB, MemoryBudget, Setup, available_bytes
from model.spec.params import Task
from model.spec.plan import REFINEMENT_LORA
from model.weights.manifest import check_complete
from worker.settings import WorkerSettings

ORDER_VERSIONS = tuple(range(1, SCHEMA_VERSION + 1))
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
_TASKS: tuple[Task, ...] = get_args(Task)


def tasks_with(loras: Collection[str]) -> tuple[Task, ...]:
    """Return the tasks that a checkpoint with these LoRAs can do: only `refine` needs one."""
    return tuple(task for task in _TASKS if task != "refine" or REFINEMENT_LORA in loras)


def memory_budget(
    checkpoint: Path, setup: Setup, limit_gib: float | None, gpu_memory_gib: int | None
) -> MemoryBudget | None:
    """Return the budget of a group that runs a checkpoint, None if its memory is not limited.

    The last two arguments are those of `available_bytes`, in GiB. Raises CheckpointError.
    """
    available = available_bytes(gpu_memory_gib and gpu_memory_gib * GIB, limit_gib)
    return None if available is None else MemoryBudget(available, read_sizes(checkpoint), setup)


def capability_of(settings: WorkerSettings, gpu_memory_gib: int | None = None) -> Capability:
    """Return what the groups of a worker will publish, without the type of the GPUs. Raises CheckpointError.

    The device `auto` is taken for CUDA. `gpu_memory_gib` is the memory of each GPU, if it is known.
    """
    check_complete(settings.checkpoint)
    device = "cpu" if settings.device == "cpu" else "cuda"
    dtype = {"cpu": "float32", "cuda": "bfloat16"}[device] if settings.dtype == "auto" else settings.dtype
    loras = tuple(sorted(path.stem for path in (settings.checkpoint / "lora").glob("*.safetensors")))
    setup = Setup(settings.ranks_per_group, ELEMENT_BYTES[dtype], settings.fp8)
    return Capability(
        model=settings.model_id,
        weights=fingerprints(settings.checkpoint),
        order_versions=ORDER_VERSIONS,
        tasks=tasks_with(loras),
        loras=loras,
        limits=load_limits(settings.checkpoint).to_json(),
        context_parallel=settings.ranks_per_group,
        device=device,
        dtype="float8_e4m3fn" if settings.fp8 else dtype,
        gpu_memory_gib=gpu_memory_gib,
        memory=memory_budget(settings.checkpoint, setup, settings.gpu_memory_gib, gpu_memory_gib),
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the capability as JSON. Return 2 if the settings or the checkpoint cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m worker.rank.capability", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder with the model weights")
    parser.add_argument("--gpu", help="type of the GPUs, as CUDA names it")
    parser.add_argument("--gpu-memory-gib", type=int, help="memory of each GPU")
    options = parser.parse_args(arguments)
    try:
        found = capability_of(WorkerSettings(checkpoint=options.checkpoint), options.gpu_memory_gib)
    except (ValidationError, CheckpointError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    found = found.model_copy(update={"gpu": options.gpu})
    sys.stdout.write(f"{found.model_dump_json(indent=2)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
