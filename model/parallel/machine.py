"""Find the ranks on the machine of this rank, and share memory among them."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from model.parallel.mesh import ContextParallel

logger = logging.getLogger(__name__)

_NO_FILE = -1


@dataclass(frozen=True)
class Machine:
    """The ranks of a run that share the memory of a machine.

    Attributes:
        num_ranks: how many there are.
        num_leaders: how many of them are the leader of a group.
        shared_file: an empty file in memory that each of them can open, as long as the first of them runs;
            None if the system refuses one.
    """

    num_ranks: int
    num_leaders: int
    shared_file: Path | None


def share_file(parallel: ContextParallel) -> Machine:
    """Create a file that exists in memory alone, for the ranks of this machine. All ranks call this together.

    The kernel frees it when the last process that has it open ends.
    """
    if not dist.is_initialized():
        return Machine(1, 1, _path(os.getpid(), _create_file()))
    rank = dist.get_rank()
    first = rank - dist.get_node_local_rank(fallback_rank=rank)  # torchrun numbers ranks machine by machine
    descriptor = _create_file() if rank == first else _NO_FILE
    own = torch.tensor([first, parallel.is_leader, os.getpid(), descriptor], device=parallel.device)
    of_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(of_ranks, own)
    here = [entry.tolist() for entry in of_ranks if entry[0] == first]
    _, _, pid, descriptor = here[0]
    return Machine(len(here), sum(is_leader for _, is_leader, _, _ in here), _path(pid, descriptor))


def _create_file() -> int:
    """Return the descriptor of a new file in memory, `_NO_FILE` if the system refuses it."""
    try:
        return os.memfd_create("longcat-weights")
    except OSError as error:
        logger.warning("ranks share no weights, and each change of LoRA reads files: %s", error)
        return _NO_FILE


def _path(pid: int, descriptor: int) -> Path | None:
    """Return where other processes can open a file of a process."""
    return None if descriptor == _NO_FILE else Path(f"/proc/{pid}/fd/{descriptor}")
