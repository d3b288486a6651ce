from __future__ import annotations

import errno

import pytest
import torch

from jobs.errors import DiskFull
from jobs.record import JobError
from model.spec.errors import CheckpointError, InputError
from worker.rank.failures import outcome_of


def job_error(error: Exception) -> JobError:
    found = outcome_of(error).error
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (DiskFull("full"), "disk_full"),
        (InputError("image", "does not decode"), "invalid_input"),
    ],
)
def test_known_error_is_contained(error, code):
    outcome = outcome_of(error)
    assert (job_error(error).code, outcome.is_contained, outcome.stop_request) == (code, True, None)


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), RuntimeError("CUDA error: illegal memory access"), OSError(errno.EIO, "I/O")],
)
def test_unknown_error_is_not_contained(error):
    assert (job_error(error).code, outcome_of(error).is_contained) == ("generation_failed", False)
    assert type(error).__name__ in job_error(error).message


def test_checkpoint_error_names_the_file(tmp_path):
    error = CheckpointError(tmp_path / "lora.safetensors", "is truncated")
    assert (job_error(error).code, outcome_of(error).is_contained) == ("generation_failed", True)
    assert "lora.safetensors: is truncated" in job_error(error).message


def test_real_allocation_failure_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert job_error(caught.value).code == "out_of_memory"


def test_full_disk_is_retryable_and_too_little_memory_is_not():
    assert job_error(OSError(errno.ENOSPC, "")).retryable
    assert not job_error(MemoryError()).retryable
