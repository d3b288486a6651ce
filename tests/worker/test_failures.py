from __future__ import annotations

import errno

import pytest
import torch

from jobs.errors import DiskFull
from model.spec.errors import CheckpointError, InputError
from worker.rank.failures import vote_of


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
def test_an_error_that_is_known_leaves_the_rank_as_it_was(error, code):
    vote = vote_of(error)
    assert vote.error is not None
    assert (vote.error.code, vote.contained, vote.stop) == (code, True, None)


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), RuntimeError("CUDA error: illegal memory access"), OSError(errno.EIO, "I/O")],
)
def test_an_error_that_nobody_knows_does_not(error):
    vote = vote_of(error)
    assert vote.error is not None
    assert (vote.error.code, vote.contained) == ("generation_failed", False)
    assert type(error).__name__ in vote.error.message


def test_a_file_of_the_checkpoint_that_went_bad_says_which(tmp_path):
    vote = vote_of(CheckpointError(tmp_path / "lora.safetensors", "is truncated"))
    assert vote.error is not None
    assert (vote.error.code, vote.contained) == ("generation_failed", True)
    assert "lora.safetensors: is truncated" in vote.error.message


def test_a_real_allocation_that_is_too_large_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    error = vote_of(caught.value).error
    assert error is not None
    assert error.code == "out_of_memory"


def test_memory_may_be_had_another_time_but_not_for_this_job():
    out_of_memory, disk_full = vote_of(MemoryError()).error, vote_of(OSError(errno.ENOSPC, "")).error
    assert out_of_memory is not None
    assert disk_full is not None
    assert not out_of_memory.retryable
    assert disk_full.retryable
