"""Print the capability of a worker without its GPUs: `python -m worker.rank.capability CHECKPOINT`.

The service accepts jobs against this document while no worker is up (`CAPABILITY_FILE`). The command reads
the files of the checkpoint and the settings of the worker, so run it with the same settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import get_args

from jobs.capability import Capability
from jobs.order import SCHEMA_VERSION
from jobs.settings import InvalidSettings
from model.io.fingerprint import fingerprints
from model.io.lora_files import lora_files
from model.sizes import read_sizes
from model.spec.errors import CheckpointError
from model.spec.limits import load_limits
from model.spec.memory import (
    GIB,
    MemoryBudget,
    Setup,
    TextEncoderOption,
    available_bytes,
    choose_text_encoder,
)
from model.spec.params import Task
from model.spec.plan import REFINEMENT_LORA
from model.spec.typical import typical_plans
from model.weights.manifest import check_complete
from worker.settings import DtypeName, RankSetup, WorkerSettings

ORDER_VERSIONS = tuple(range(1, SCHEMA_VERSION + 1))
QUANTISED_DTYPES = {"fp8": "float8_e4m3fn", "int8": "int8"}
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
AUTO_DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
_TASKS: tuple[Task, ...] = get_args(Task)


def tasks_with(loras: Collection[str]) -> tuple[Task, ...]:
    """Return the tasks that a checkpoint with these LoRAs can do: only `refine` needs one."""
    return tuple(task for task in _TASKS if task != "refine" or REFINEMENT_LORA in loras)


def choose_dtype(wanted: DtypeName, device: str) -> str:
    """Return the data type of weights and activations on a type of device: `wanted`, unless it is `auto`."""
    return AUTO_DTYPES[device] if wanted == "auto" else wanted


def setup_of(settings: WorkerSettings | RankSetup, ranks: int, dtype: str) -> Setup:
    """Return how groups of so many ranks run the checkpoint, before the text encoder is placed."""
    return Setup(
        ranks,
        ELEMENT_BYTES[dtype],
        settings.quantize,
        shard_weights=settings.shard_weights,
        stream_weights=settings.stream_weights,
    )


def plan_memory(
    checkpoint: Path,
    setup: Setup,
    text_encoder: TextEncoderOption,
    limit_gib: float | None,
    gpu_memory_gib: int | None,
    widest: int | None = None,
) -> tuple[Setup, MemoryBudget | None]:
    """Place the text encoder. Return the setup with it, and the group's budget, None if it has no limit.

    `limit_gib` and `gpu_memory_gib` are those of `available_bytes`. `widest` is the number of ranks that can
    make a video together if that changes; the budget is for so many. Raises CheckpointError.
    """
    available = available_bytes(gpu_memory_gib and gpu_memory_gib * GIB, limit_gib)
    sizes = read_sizes(checkpoint)
    plans = dict(typical_plans(load_limits(checkpoint), lora_files(checkpoint))).values()
    placement = choose_text_encoder(text_encoder, sizes, setup, plans, available)
    setup = replace(setup, text_encoder=placement)
    budgeted = replace(setup, ranks=widest or setup.ranks)
    return setup, None if available is None else MemoryBudget(available, sizes, budgeted)


def capability_of(settings: WorkerSettings, gpu_memory_gib: int | None = None) -> Capability:
    """Return what the groups of a worker will publish, without the type of the GPUs. Raises CheckpointError.

    The device `auto` is taken for CUDA. `gpu_memory_gib` is the memory of each GPU, if it is known.
    """
    check_complete(settings.checkpoint)
    device = "cpu" if settings.device == "cpu" else "cuda"
    dtype = choose_dtype(settings.dtype, device)
    loras, weights = tuple(sorted(lora_files(settings.checkpoint))), fingerprints(settings.checkpoint)
    _, memory = plan_memory(
        settings.checkpoint,
        setup_of(settings, settings.ranks_per_group, dtype),
        settings.text_encoder,
        settings.gpu_memory_gib,
        gpu_memory_gib,
        widest=settings.ranks_per_world,
    )
    limits = load_limits(settings.checkpoint)
    return Capability(
        model=settings.model_id,
        weights=weights,
        order_versions=ORDER_VERSIONS,
        tasks=tasks_with(loras),
        loras=loras,
        limits=limits.to_json(),
        known_words=limits.known_words,
        context_parallel=settings.ranks_per_group,
        device=device,
        dtype=QUANTISED_DTYPES.get(settings.quantize, dtype),
        gpu_memory_gib=gpu_memory_gib,
        memory=memory,
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the capability as JSON. Return 2 if the settings or the checkpoint cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m worker.rank.capability", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder with the model weights")
    parser.add_argument("--gpu", help="type of the GPUs, as CUDA names it")
    parser.add_argument("--gpu-memory-gib", type=int, help="memory of each GPU")
    options = parser.parse_args(arguments)
    try:
        found = capability_of(WorkerSettings.read(checkpoint=options.checkpoint), options.gpu_memory_gib)
    except InvalidSettings as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except CheckpointError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    found = found.model_copy(update={"gpu": options.gpu})
    sys.stdout.write(f"{found.model_dump_json(indent=2)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
