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
from model.spec.errors import CheckpointError
from model.spec.limits import load_limits
from model.spec.params import Task
from model.spec.plan import REFINEMENT_LORA
from model.weights.manifest import check_complete
from worker.settings import WorkerSettings

ORDER_VERSIONS = tuple(range(1, SCHEMA_VERSION + 1))
_TASKS: tuple[Task, ...] = get_args(Task)


def tasks_with(loras: Collection[str]) -> tuple[Task, ...]:
    """Return the tasks that a checkpoint with these LoRAs can do: only `refine` needs one."""
    return tuple(task for task in _TASKS if task != "refine" or REFINEMENT_LORA in loras)


def capability_of(settings: WorkerSettings) -> Capability:
    """Return what the groups of a worker will publish, without the type of the GPUs. Raises CheckpointError.

    The device `auto` is taken for CUDA.
    """
    check_complete(settings.checkpoint)
    device = "cpu" if settings.device == "cpu" else "cuda"
    dtype = {"cpu": "float32", "cuda": "bfloat16"}[device] if settings.dtype == "auto" else settings.dtype
    loras = tuple(sorted(path.stem for path in (settings.checkpoint / "lora").glob("*.safetensors")))
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
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the capability as JSON. Return 2 if the settings or the checkpoint cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m worker.rank.capability", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder with the model weights")
    parser.add_argument("--gpu", help="type of the GPUs, as CUDA names it")
    parser.add_argument("--gpu-memory-gib", type=int, help="memory of each GPU")
    options = parser.parse_args(arguments)
    try:
        found = capability_of(WorkerSettings(checkpoint=options.checkpoint))
    except (ValidationError, CheckpointError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    gpu = {"gpu": options.gpu, "gpu_memory_gib": options.gpu_memory_gib}
    sys.stdout.write(f"{found.model_copy(update=gpu).model_dump_json(indent=2)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
