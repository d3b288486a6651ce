from __future__ import annotations

import errno

import pytest
import torch
import torch.distributed as dist

from jobs.errors import DiskFull
from jobs.record import JobError
from model.spec.errors import CheckpointError, InputError
from worker.rank.failures import outcome_of


def job_error(error: Exception) -> JobError:
    found = outcome_of(error).error
    assert found is not None
    return found


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError(
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in CUDA's docs"
    ),
    RuntimeError("CUDA driver error: out of memory"),
    *(
        RuntimeError(f'NVML_SUCCESS == {call} INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/{line}')
        for call, line in (
            ("r", 'CUDACachingAllocator.cpp":1165, please report a bug to PyTorch. '),
            ("DriverAPI::get()->nvmlInit_v2_()", 'CUDACachingAllocator.cpp":1135, please report a bug.'),
        )
    ),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
NCCL_OUT_OF_MEMORY = [
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nFailed to CUDA calloc 4 bytes",
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_every_failed_allocation_is_out_of_memory_and_leaves_the_rank_sound(error):
    assert (job_error(error).code, outcome_of(error).aftermath) == ("out_of_memory", "sound")


@pytest.mark.parametrize("last_error", NCCL_OUT_OF_MEMORY)
def test_communicator_that_had_no_memory_cannot_be_used_again(last_error):
    error = dist.DistBackendError(f"NCCL error, unhandled cuda error\n{last_error}")
    assert (job_error(error).code, outcome_of(error).aftermath) == ("out_of_memory", "broken")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (OSError(errno.EROFS, "Read-only file system"), "disk_full"),
        (DiskFull("full"), "disk_full"),
        (InputError("image", "does not decode"), "invalid_input"),
    ],
)
def test_other_known_error_leaves_the_rank_sound(error, code):
    outcome = outcome_of(error)
    assert (job_error(error).code, outcome.aftermath, outcome.stop_request) == (code, "sound", None)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        ValueError("out of memory bounds"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/c10/cuda/PeerToPeerAccess.cpp":78'),
        dist.DistBackendError("NCCL error, remote process exited or there was a network error"),
        RuntimeError("out of resource: shared memory, Required: 172032, Hardware limit: 101376"),
        OSError(errno.EIO, "I/O"),
    ],
    ids=str,
)
def test_nothing_is_known_of_a_rank_after_an_unknown_error(error):
    assert (job_error(error).code, outcome_of(error).aftermath) == ("generation_failed", "unknown")
    assert type(error).__name__ in job_error(error).message


def test_checkpoint_error_names_the_file(tmp_path):
    error = CheckpointError(tmp_path / "lora.safetensors", "is truncated")
    assert (job_error(error).code, outcome_of(error).aftermath) == ("generation_failed", "sound")
    assert "lora.safetensors: is truncated" in job_error(error).message


def test_real_allocation_failure_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert job_error(caught.value).code == "out_of_memory"


def test_full_disk_is_retryable_and_too_little_memory_is_not():
    assert job_error(OSError(errno.ENOSPC, "")).retryable
    assert not job_error(MemoryError()).retryable
