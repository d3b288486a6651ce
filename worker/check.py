"""Check whether this machine can run a worker with its settings: `python -m worker.check`.

It reads the settings and the headers of the checkpoint, asks the driver for the GPUs, and on node 0
Redis and the storage for an answer, and predicts which videos fit into the memory of the GPUs. It loads no
weights. The exit status is 1 if something was found that keeps a worker from running, and 2 for settings that
cannot work.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import ValidationError

from jobs.connect import check_server, connect
from jobs.errors import LongCatError
from jobs.storage.base import open_storage
from model.io.sizes import read_prepared_bytes, read_sizes
from model.spec.errors import CheckpointError
from model.spec.limits import load_limits
from model.spec.memory import (
    GIB,
    CheckpointSizes,
    MemoryNeed,
    Setup,
    available_bytes,
    choose_text_encoder,
    format_bytes,
    host_needed,
    memory_needed,
    weight_bytes,
)
from model.spec.typical import typical_plans
from model.transformer.config import load_dit_config
from worker.host_memory import host_memory_bytes
from worker.settings import Endpoint, WorkerSettings

DEADLINE_S = 5.0
_TORCH = """
import json, torch
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available()]))
"""
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Finding:
    """Report a fact about the machine. A problem keeps the worker from running."""

    kind: Literal["ok", "note", "problem"]
    text: str


@dataclass(frozen=True)
class Gpu:
    """Describe a GPU as the driver does."""

    name: str
    memory_bytes: int
    driver: str


def find_gpus() -> list[Gpu]:
    """Return the GPUs that the driver shows. There are none without a driver."""
    try:
        shown = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in shown.splitlines() if line.strip()]
    return [Gpu(name, int(mebibytes) * 1024**2, driver) for name, mebibytes, driver in rows]


def check(settings: WorkerSettings, gpus: list[Gpu]) -> Iterator[Finding]:
    """Yield what was found, the most basic first."""
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and not gpus)
    yield from _check_gpus(settings, gpus, on_cpu=on_cpu)
    yield _check_torch(on_cpu=on_cpu)
    yield from _check_checkpoint(settings, None if on_cpu else gpus)
    yield from _check_disks(settings)
    if settings.nodes > 1:
        yield _check_rendezvous(settings)
    if settings.node_rank == 0:
        yield _check_redis(settings)
        yield _check_storage(settings)


def _check_gpus(settings: WorkerSettings, gpus: list[Gpu], *, on_cpu: bool) -> Iterator[Finding]:
    for number, gpu in enumerate(gpus):
        yield Finding(
            "ok", f"GPU {number}: {gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB, driver {gpu.driver}"
        )
    if on_cpu:
        yield Finding("note", "no GPU is used: only small checkpoints make videos in reasonable time")
    elif len(gpus) < settings.ranks:
        yield Finding("problem", f"RANKS is {settings.ranks}, but the driver shows {len(gpus)} GPUs")


def _check_torch(*, on_cpu: bool) -> Finding:
    command = [sys.executable, "-c", _TORCH]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("problem", f"PyTorch cannot be imported: {error}")
    version, cuda, works = json.loads(shown)
    text = f"PyTorch {version}, " + (f"built for CUDA {cuda}" if cuda else "built without CUDA")
    if on_cpu or works:
        return Finding("ok", text)
    return Finding("problem", f"{text}, cannot use the GPUs: install a build for CUDA, or update the driver")


def _check_checkpoint(settings: WorkerSettings, gpus: list[Gpu] | None) -> Iterator[Finding]:
    """Check the checkpoint, and on GPUs which videos fit into their memory."""
    folder = settings.checkpoint
    try:
        sizes, limits = read_sizes(folder), load_limits(folder)
    except CheckpointError as error:
        yield Finding("problem", f"checkpoint: {error}")
        return
    yield from _check_heads(settings, load_dit_config(folder / "dit" / "config.json").num_heads)
    total = sizes.transformer + sizes.text_encoder + sizes.vae
    loras = sorted(path.stem for path in (folder / "lora").glob("*.safetensors"))
    yield Finding(
        "ok",
        f"checkpoint {folder}: {total / 1e9:.2f} billion parameters, LoRAs: {', '.join(loras) or 'none'}",
    )
    element_bytes = {"float32": 4, "bfloat16": 2, "auto": 4 if gpus is None else 2}[settings.dtype]
    setup = Setup(
        settings.ranks_per_group,
        element_bytes,
        settings.quantize,
        shard_weights=settings.shard_weights,
        stream_weights=settings.stream_weights,
    )
    smallest = min(gpu.memory_bytes for gpu in gpus[: settings.ranks]) if gpus else None
    available = available_bytes(smallest, settings.gpu_memory_gib)
    plans = dict(typical_plans(limits, loras))
    placement = choose_text_encoder(settings.text_encoder, sizes, setup, plans.values(), available)
    setup = replace(setup, text_encoder=placement)
    yield Finding("ok", f"text encoder: {_PLACEMENTS[placement]} (TEXT_ENCODER={placement})")
    if available is not None:
        yield _check_loading(sizes, setup, available)
    yield from _check_host_memory(sizes, setup, settings)
    for name, plan in plans.items():
        needs = {width: memory_needed(sizes, plan, replace(setup, ranks=width)) for width in settings.widths}
        yield _check_plan(name, needs, available)


def _check_heads(settings: WorkerSettings, num_heads: int) -> Iterator[Finding]:
    """Check that the ranks of a group can divide the attention heads. A world uses the widths that can."""
    ranks = settings.ranks_per_group
    sharing = ranks // settings.ring_degree
    if num_heads % sharing and not settings.is_elastic:
        degree = next(n for n in range(1, ranks + 1) if ranks % n == 0 and num_heads % (ranks // n) == 0)
        yield Finding(
            "problem",
            f"{sharing} ranks cannot share {num_heads} attention heads evenly: RING_DEGREE={degree} helps",
        )


def _check_loading(sizes: CheckpointSizes, setup: Setup, available: int) -> Finding:
    """Check that the weights fit."""
    needed = weight_bytes(sizes, setup)
    text = f"weights: {format_bytes(needed)} on the first GPU of each group"
    if needed <= available:
        return Finding("ok", text)
    text = f"{text}, but only {format_bytes(available)} can be used there"
    if setup.shard_weights or setup.stream_weights:
        return Finding("problem", text)
    alternatives = {"STREAM_WEIGHTS": replace(setup, stream_weights=True)}
    if setup.ranks > 1:
        alternatives["SHARD_WEIGHTS"] = replace(setup, shard_weights=True)
    sizes_with = " or ".join(
        f"{format_bytes(weight_bytes(sizes, other))} with {name}=on" for name, other in alternatives.items()
    )
    return Finding("problem", f"{text}; they take {sizes_with}")


def _check_plan(name: str, needs: Mapping[int, MemoryNeed], available: int | None) -> Finding:
    """Check that a plan fits with some number of ranks, given what it needs with each, fewest first."""
    fitting = [width for width, need in needs.items() if available is None or need.total <= available]
    width = fitting[0] if fitting else max(needs)
    need, on_ranks = needs[width], f" on {width} GPUs" if len(needs) > 1 and width > 1 else ""
    text = f"{name}: {format_bytes(need.total)}{on_ranks}, most of it while it {_VERBS[need.phase]}"
    if available is None:
        return Finding("note", text)
    if fitting:
        return Finding("ok", text)
    advice = "more ranks for each video may help"
    return Finding("note", f"{text}: does not fit into {format_bytes(available)}; {advice}")


_VERBS = {
    "encode_text": "encodes its prompts",
    "encode": "encodes its inputs",
    "denoise": "is denoised",
    "decode": "is decoded",
}
_PLACEMENTS = {
    "device": "stays on the device",
    "offload": "is in host memory, and runs on the device layer by layer",
    "cpu": "is in host memory, and runs on the CPU",
}


def _check_host_memory(sizes: CheckpointSizes, setup: Setup, settings: WorkerSettings) -> Iterator[Finding]:
    """Check that the weights that stay in host memory fit into it, if any do."""
    num_leaders = settings.num_groups if settings.node_rank == 0 else 0
    need, total = host_needed(sizes, setup, settings.ranks, num_leaders), host_memory_bytes()
    try:
        shared = read_prepared_bytes(settings.checkpoint, setup)
    except CheckpointError as error:
        yield Finding("problem", f"LoRAs: {error}")
        shared = 0
    limit = need.shared_limit(total, settings.lora_memory_gib)
    if shared:
        yield _check_shared(shared, limit, is_streamed=setup.stream_weights)
    if needed := need.text_encoders + shared if 0 < shared <= limit else need.total:
        text = f"host memory: {format_bytes(needed)} of weights, of {format_bytes(total)}"
        yield Finding("ok" if needed < total else "problem", text)


def _check_shared(shared: int, limit: int, *, is_streamed: bool) -> Finding:
    """Check that the weights that all ranks share may take the host memory that they need."""
    needed, may = f"{format_bytes(shared)} of host memory, once for all ranks", format_bytes(limit)
    if shared <= limit:
        weights = "streamed blocks, and LoRAs" if is_streamed else "LoRAs"
        return Finding("ok", f"{weights}: kept merged in {needed}")
    text = "LoRAs: each change reads files, since merged weights may take"
    if not is_streamed:
        return Finding("note", f"{text} {may} (LORA_MEMORY_GIB) and need {needed}")
    text = f"each rank has a copy of the streamed blocks. {text}"
    return Finding("note", f"{text} {may} (in place of copies, and LORA_MEMORY_GIB) and need {needed}")


def _check_disks(settings: WorkerSettings) -> Iterator[Finding]:
    for folder in settings.disks:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        text = f"{folder}: {free / GIB:.0f} GiB free"
        if free < settings.min_free_bytes:
            yield Finding("problem", f"{text}, less than MIN_FREE_BYTES: the worker would claim no job")
        else:
            yield Finding("ok", text)


def _check_rendezvous(settings: WorkerSettings) -> Finding:
    """Check that the name of node 0 is known, and on node 0 that it is an address of this machine."""
    assert settings.rendezvous is not None
    endpoint = Endpoint.parse(settings.rendezvous)
    try:
        family, _, _, _, address = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)[
            0
        ]
        if settings.node_rank == 0:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((address[0], 0))
    except OSError as error:
        return Finding("problem", f"RENDEZVOUS {endpoint}: {error.strerror}")
    return Finding("ok", f"node {settings.node_rank} of {settings.nodes}, which meet at {endpoint}")


def _check_redis(settings: WorkerSettings) -> Finding:
    try:
        with connect(settings.redis_address, DEADLINE_S) as redis:
            check_server(redis, settings.redis_wait_replicas)
    except LongCatError as error:
        return Finding("problem", f"Redis: {error.message}")
    return Finding("ok", "Redis answers")


def _check_storage(settings: WorkerSettings) -> Finding:
    try:
        open_storage(settings).check()
    except LongCatError as error:
        return Finding("problem", f"storage: {error.message}")
    return Finding("ok", "the storage answers")


def main() -> int:
    """Print the report. Return the exit status."""
    try:
        settings = WorkerSettings()
    except (ValidationError, LongCatError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    has_problem = False
    for finding in check(settings, find_gpus()):
        sys.stdout.write(f"{finding.kind:8} {finding.text}\n")
        sys.stdout.flush()
        has_problem |= finding.kind == "problem"
    return 1 if has_problem else 0


if __name__ == "__main__":
    sys.exit(main())
