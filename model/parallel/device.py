"""Choose the device of this machine that runs the model, and tell the memory of GPUs."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from model.spec.errors import ModelError

LARGEST_ON_CPU_BYTES = 8 << 30
"""The largest checkpoint that runs on a CPU without being asked for: a larger one is meant for GPUs."""


def configure_allocator() -> None:
    """Let the allocator on CUDA grow its segments, unless the environment configures it.

    Otherwise one stage may leave memory in pieces that the next cannot use. Call this before CUDA is used.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def prioritise_exchanges() -> None:
    """Let NCCL's kernels begin while others run, unless the environment decides.

    Otherwise an exchange that is started together with attention waits until attention leaves a part of the
    GPU. Call this before NCCL is used.
    """
    os.environ.setdefault("TORCH_NCCL_HIGH_PRIORITY", "1")


def choose_device(wanted: str, checkpoint: Path) -> str:
    """Return the type of torch device: `wanted`, or for `auto` a GPU if one can be used, otherwise the CPU.

    Raises ModelError if `wanted` is a GPU that cannot be used, or if `auto` would run a large checkpoint on
    the CPU: that takes hours for each video, and usually the driver or the container is set up wrongly.
    """
    if wanted == "cpu":
        return "cpu"
    if (problem := gpu_problem()) is None:
        return "cuda"
    if wanted == "cuda":
        raise ModelError(f"no GPU can be used: {problem}")
    size_bytes = sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
    if size_bytes > LARGEST_ON_CPU_BYTES:
        raise ModelError(
            f"no GPU can be used: {problem}. The checkpoint is too large to run on the CPU by accident "
            f"({size_bytes / 1e9:.0f} GB): choose the device `cpu` if that is what you want"
        )
    return "cpu"


def gpu_problem() -> str | None:
    """Return why no GPU can be used, None if one can."""
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # no driver, an old one, or no GPU that this process may see
        return str(error)
    return None if torch.cuda.device_count() else "there is none, or CUDA_VISIBLE_DEVICES hides it"


def free_gpu_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU, None for a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def smallest_gpu_bytes(device: torch.device) -> int | None:
    """Return the memory of the smallest GPU of all ranks, which call this together; None on CPUs."""
    if device.type != "cuda":
        return None
    return least_of_ranks(torch.cuda.get_device_properties(device).total_memory, device)


def least_of_ranks(value: int, device: torch.device) -> int:
    """Return the least that any rank gives. All ranks call this together."""
    if not dist.is_initialized():
        return value
    least = torch.tensor(value, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)
