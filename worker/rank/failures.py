"""Classify the error that ended a job on a rank, for the client and for the group."""

from __future__ import annotations

import errno
import re

import torch
import torch.distributed as dist

from jobs.errors import UNWRITABLE_ERRNOS, DiskFull, GenerationFailed, InvalidInput, LongCatError, OutOfMemory
from jobs.record import JobError
from model.spec.errors import InputError, ModelError
from worker.rank.consensus import Aftermath, StepOutcome

ALLOCATION_FAILED = re.compile(
    r"out of memory"  # CUDA's runtime and driver, Triton, NCCL
    r"|_(ALLOC|ALLOCATION)_FAILED"  # cuBLAS, cuDNN
    r"|Failed to CUDA (calloc|malloc)"  # NCCL
    r"|NVML_SUCCESS == .* INTERNAL ASSERT FAILED at .*CUDACachingAllocator"  # see below
    r"|can't allocate memory|std::bad_alloc"  # the host
)
"""What libraries say in a RuntimeError, in place of `torch.OutOfMemoryError`, if an allocation fails.

To describe a full memory, PyTorch's allocator asks NVML for the processes of the GPU. On a MIG slice or in a
container, NVML may refuse to answer, and then a failed assertion is all that PyTorch says.
"""


def outcome_of(error: Exception) -> StepOutcome:
    """Return the outcome of this rank after an error. Nothing is known of a rank after an unknown error."""
    known = _known(error)
    if known is None:
        failure = GenerationFailed(f"{type(error).__name__}: {error}")
        return StepOutcome(error=JobError.of(failure), aftermath="unknown")
    # A communicator that failed cannot be used again.
    aftermath: Aftermath = "broken" if isinstance(error, dist.DistBackendError) else "sound"
    return StepOutcome(error=JobError.of(known), aftermath=aftermath)


def _known(error: Exception) -> LongCatError | None:
    """Return an error of which the cause is known, as the client sees it, None for any other error."""
    match error:
        case LongCatError():
            return error
        case InputError():
            return InvalidInput(str(error), error.field)
        case ModelError():
            return GenerationFailed(str(error))
        case OSError() if error.errno in UNWRITABLE_ERRNOS:
            return DiskFull(f"the worker's disk cannot take the video: {error.strerror}")
    if _is_out_of_memory(error):
        rank = dist.get_rank() if dist.is_initialized() else 0
        return OutOfMemory(f"the video does not fit into the memory of the worker (rank {rank})")
    return None


def _is_out_of_memory(error: Exception) -> bool:
    match error:
        case MemoryError() | torch.OutOfMemoryError():
            return True
        case OSError():
            return error.errno == errno.ENOMEM
        case RuntimeError():
            return bool(ALLOCATION_FAILED.search(str(error)))
    return False
