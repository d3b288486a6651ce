"""The ranks of a machine share a file in memory."""

from __future__ import annotations

import errno
import os
from unittest.mock import patch

import pytest
import torch.distributed as dist

from model.parallel.machine import share_file
from model.parallel.mesh import SINGLE, ContextParallel


def test_single_rank_has_a_file_of_its_own():
    machine = share_file(SINGLE)
    assert (machine.num_ranks, machine.num_leaders) == (1, 1)
    assert machine.shared_file
    assert machine.shared_file.read_bytes() == b""


def shared_file(parallel: ContextParallel, per_machine: int) -> tuple[int, int, int]:
    """How many ranks and leaders this machine has, and what its first rank wrote to the file they share."""
    local_rank = parallel.rank % per_machine
    with patch.dict(os.environ, LOCAL_RANK=str(local_rank)):
        machine = share_file(parallel)
    assert machine.shared_file
    if local_rank == 0:
        machine.shared_file.write_bytes(bytes([parallel.rank]))
    dist.barrier()
    return machine.num_ranks, machine.num_leaders, machine.shared_file.read_bytes()[0]


@pytest.mark.parametrize(
    ("per_machine", "expected"),
    [(4, [(4, 1, 0)] * 4), (2, [(2, 1, 0), (2, 1, 0), (2, 0, 2), (2, 0, 2)])],
    ids=["one machine", "two machines"],
)
def test_ranks_share_the_file_of_the_first_on_their_machine(ranks, per_machine, expected):
    assert ranks.run(shared_file, 4, per_machine) == expected


def test_system_that_refuses_the_file_is_reported(monkeypatch, caplog):
    def refuse(_name: str) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert share_file(SINGLE).shared_file is None
    assert "each change of LoRA reads files" in caplog.text
