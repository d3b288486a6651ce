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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import ValidationError

from jobs.connect import check_server, connect
from jobs.errors import LongCatError
from jobs.storage.base import open_storage
from model.io.host_memory import host_memory_bytes
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
from model.spec.plan import Plan
from model.spec.typical import typical_plans
from model.transformer.config import load_dit_config
from worker.rank.capability import choose_dtype, lora_names, setup_of
from worker.settings import Endpoint, WorkerSettings, visible_devices

DEADLINE_S = 5.0
_TORCH = """
import json, torch
gpus = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
memory = [gpu.total_memory for gpu in gpus] if torch.cuda.is_available() else []
print(json.dumps([torch.__version__, torch.version.cuda, memory]))
"""
_NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=name,memory.total,driver_version,uuid",
    "--format=csv,noheader,nounits",
)
MOST_RANKS = 8  # that are recommended for a video


@dataclass(frozen=True)
class Finding:
    """Report a fact about the machine. A problem keeps the worker from running."""

    kind: Literal["ok", "note", "problem"]
    text: str


@dataclass(frozen=True)
class Gpu:
    """Describe a GPU as the driver does, which does not know the memory of all."""

    name: str
    memory_bytes: int | None
    driver: str
    uuid: str = ""


@dataclass(frozen=True)
class Torch:
    """Describe the installed PyTorch, and the memory of each GPU that it can use, in bytes."""

    version: str
    cuda: str | None
    gpu_memory: Sequence[int]


def find_gpus(names: Sequence[str] | None = None) -> list[Gpu]:
    """Return the GPUs that the driver shows, or those of them that CUDA_VISIBLE_DEVICES names, in its order.

    There are none without a driver.
    """
    try:
        shown = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in shown.splitlines() if line.strip()]
    gpus = [
        Gpu(name, int(mebibytes) * 1024**2 if mebibytes.isdecimal() else None, *rest)
        for name, mebibytes, *rest in rows
    ]
    if names is None:
        return gpus
    visible: list[Gpu] = []
    for name in names:
        if (gpu := _named(gpus, name)) is None:
            break  # CUDA, too, ignores an unknown name and all after it
        visible.append(gpu)
    return visible


def _named(gpus: Sequence[Gpu], name: str) -> Gpu | None:
    """Return the GPU with this number, or whose UUID begins so; None if there is none."""
    if name.startswith("MIG-") and gpus:
        return Gpu(name, None, gpus[0].driver, name)
    if name.isdecimal():
        return gpus[int(name)] if int(name) < len(gpus) else None
    return next((gpu for gpu in gpus if name.startswith("GPU-") and gpu.uuid.startswith(name)), None)


def check(settings: WorkerSettings, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Yield what was found, the most basic first."""
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and not gpus)
    torch = _ask_torch()
    if isinstance(torch, Torch) and len(torch.gpu_memory) == len(gpus):  # a little less than the driver says
        gpus = [replace(gpu, memory_bytes=size) for gpu, size in zip(gpus, torch.gpu_memory, strict=True)]
    yield from _check_gpus(settings, gpus, on_cpu=on_cpu)
    yield _check_torch(torch, on_cpu=on_cpu)
    yield from _check_checkpoint(settings, None if on_cpu else gpus)
    yield from _check_disks(settings)
    if settings.nodes > 1:
        yield _check_rendezvous(settings)
    if settings.node_rank == 0:
        yield _check_redis(settings)
        yield _check_storage(settings)


def _check_gpus(settings: WorkerSettings, gpus: Sequence[Gpu], *, on_cpu: bool) -> Iterator[Finding]:
    for number, gpu in enumerate(gpus):
        memory = "unknown memory" if gpu.memory_bytes is None else f"{gpu.memory_bytes // GIB} GiB"
        yield Finding("ok", f"GPU {number}: {gpu.name}, {memory}, driver {gpu.driver}")
    if on_cpu:
        yield Finding("note", "no GPU is used: only small checkpoints make videos in reasonable time")
    elif len(gpus) < settings.ranks:
        shown = "the driver shows" if visible_devices() is None else "CUDA_VISIBLE_DEVICES leaves"
        yield Finding("problem", f"RANKS is {settings.ranks}, but {shown} {len(gpus)} GPUs")
    elif settings.gpu_memory_gib is None and _smallest(settings, gpus) is None:
        yield Finding("note", "which videos fit is not known: GPU_MEMORY_GIB tells the memory of each GPU")


def _smallest(settings: WorkerSettings, gpus: Sequence[Gpu]) -> int | None:
    """Return the memory of the smallest GPU of the ranks, None if that of one is not known."""
    sizes = [gpu.memory_bytes for gpu in gpus[: settings.ranks]]
    known = [size for size in sizes if size is not None]
    return min(known) if known and len(known) == len(sizes) else None


def _ask_torch() -> Torch | Finding:
    """Ask PyTorch in a process of its own, which leaves the GPUs when it ends."""
    command = [sys.executable, "-c", _TORCH]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("problem", f"PyTorch cannot be imported: {error}")
    return Torch(*json.loads(shown))


def _check_torch(torch: Torch | Finding, *, on_cpu: bool) -> Finding:
    if isinstance(torch, Finding):
        return torch
    text = f"PyTorch {torch.version}, " + (
        f"built for CUDA {torch.cuda}" if torch.cuda else "built without CUDA"
    )
    if on_cpu or torch.gpu_memory:
        return Finding("ok", text)
    return Finding("problem", f"{text}, cannot use the GPUs: install a build for CUDA, or update the driver")


def _check_checkpoint(settings: WorkerSettings, gpus: Sequence[Gpu] | None) -> Iterator[Finding]:
    """Check the checkpoint, and on GPUs which videos fit into their memory."""
    folder = settings.checkpoint
    try:
        sizes, limits = read_sizes(folder), load_limits(folder)
    except CheckpointError as error:
        yield Finding("problem", f"checkpoint: {error}")
        return
    yield from _check_heads(settings, load_dit_config(folder / "dit" / "config.json").num_heads)
    total = sizes.transformer + sizes.text_encoder + sizes.vae
    loras = lora_names(folder)
    size = f"{total / 1e9:.1f} billion" if total >= 1e9 else f"{total / 1e6:.1f} million"
    yield Finding("ok", f"checkpoint {folder}: {size} parameters, LoRAs: {', '.join(loras) or 'none'}")
    dtype = choose_dtype(settings.dtype, "cpu" if gpus is None else "cuda")
    setup = setup_of(settings, settings.ranks_per_group, dtype)
    smallest = None if gpus is None else _smallest(settings, gpus)
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
        finding = _check_plan(name, needs, available)
        if available is not None and finding.kind == "note":
            advice = _advice(sizes, plan, replace(setup, ranks=max(needs)), available)
            finding = replace(finding, text=f"{finding.text}; {advice}")
        yield finding


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
    sizes_with = [
        f"{format_bytes(size)} with {name}"
        for name, other in _alternatives(setup).items()
        if (size := weight_bytes(sizes, other)) <= available
    ]
    return Finding("problem", f"{text}; they take {' or '.join(sizes_with)}" if sizes_with else text)


def _alternatives(setup: Setup) -> dict[str, Setup]:
    """Return the settings, by name, that need less memory of each GPU. The first cost the least time."""
    alternatives: dict[str, Setup] = {}
    if setup.text_encoder == "device":
        alternatives["TEXT_ENCODER=offload"] = replace(setup, text_encoder="offload")
    if setup.quantize == "none":
        alternatives["QUANTIZE=fp8"] = replace(setup, quantize="fp8")
        alternatives["QUANTIZE=int8"] = replace(setup, quantize="int8")
    if not (setup.shard_weights or setup.stream_weights):
        if setup.ranks > 1:
            alternatives["SHARD_WEIGHTS=on"] = replace(setup, shard_weights=True)
        alternatives["STREAM_WEIGHTS=on"] = replace(setup, stream_weights=True)
    return alternatives


def _advice(sizes: CheckpointSizes, plan: Plan, setup: Setup, available: int) -> str:
    """Return how a plan would fit: each of the settings that suffices, and the fewest ranks that do."""
    ranks = [number for number in (2, 4, MOST_RANKS) if number > setup.ranks]
    more = {f"{number} ranks for each video": replace(setup, ranks=number) for number in ranks}
    fitting, fitting_more = (
        [name for name, other in setups.items() if memory_needed(sizes, plan, other).total <= available]
        for setups in (_alternatives(setup), more)
    )
    ways = [*fitting, *fitting_more[:1]]
    return f"each of these makes it fit: {', '.join(ways)}" if ways else "no single setting makes it fit"


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
    return Finding("note", f"{text}: does not fit into {format_bytes(available)}")


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
    for finding in check(settings, find_gpus(visible_devices())):
        sys.stdout.write(f"{finding.kind:8} {finding.text}\n")
        sys.stdout.flush()
        has_problem |= finding.kind == "problem"
    return 1 if has_problem else 0


if __name__ == "__main__":
    sys.exit(main())
