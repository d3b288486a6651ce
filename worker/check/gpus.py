"""Find the GPUs of this machine, and check that the ranks and PyTorch can use them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.spec.memory import GIB
from worker.check.finding import Finding
from worker.settings import WorkerSettings, visible_devices

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


def check_gpus(settings: WorkerSettings, gpus: Sequence[Gpu], *, on_cpu: bool) -> Iterator[Finding]:
    """Check that there is a GPU for each rank, unless the ranks run on the CPU."""
    for number, gpu in enumerate(gpus):
        memory = "unknown memory" if gpu.memory_bytes is None else f"{gpu.memory_bytes // GIB} GiB"
        yield Finding("ok", f"GPU {number}: {gpu.name}, {memory}, driver {gpu.driver}")
    if on_cpu:
        yield Finding("note", "no GPU is used: only small checkpoints make videos in reasonable time")
    elif len(gpus) < settings.ranks:
        shown = "the driver shows" if visible_devices() is None else "CUDA_VISIBLE_DEVICES leaves"
        yield Finding("problem", f"RANKS is {settings.ranks}, but {shown} {len(gpus)} GPUs")
    elif settings.gpu_memory_gib is None and smallest_memory(settings, gpus) is None:
        yield Finding("note", "which videos fit is not known: GPU_MEMORY_GIB tells the memory of each GPU")


def smallest_memory(settings: WorkerSettings, gpus: Sequence[Gpu]) -> int | None:
    """Return the bytes of the smallest GPU of the ranks, None if those of one are not known."""
    sizes = [gpu.memory_bytes for gpu in gpus[: settings.ranks]]
    known = [size for size in sizes if size is not None]
    return min(known) if known and len(known) == len(sizes) else None


def ask_torch() -> Torch | Finding:
    """Ask PyTorch in a process of its own, which leaves the GPUs when it ends.

    Return a problem if it cannot be imported.
    """
    command = [sys.executable, "-c", _TORCH]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("problem", f"PyTorch cannot be imported: {error}")
    return Torch(*json.loads(shown))


def check_torch(torch: Torch | Finding, *, on_cpu: bool) -> Finding:
    """Check that PyTorch, as `ask_torch` returned it, can use the GPUs, unless the ranks run on the CPU."""
    if isinstance(torch, Finding):
        return torch
    text = f"PyTorch {torch.version}, " + (
        f"built for CUDA {torch.cuda}" if torch.cuda else "built without CUDA"
    )
    if on_cpu or torch.gpu_memory:
        return Finding("ok", text)
    return Finding("problem", f"{text}, cannot use the GPUs: install a build for CUDA, or update the driver")
