"""Rank processes that stay alive through a test run and call the functions that they are sent.

The tests call `Ranks.run` with a function, a number of ranks to share the work, and arguments; they get what
the function returned on each of those ranks. Its first argument is the rank's `ContextParallel`. The function
is sent by its name, so it stands in a module: in that of the test, or in `tests.model.rank_jobs` if several
modules use it. Run as a program, this module imports the model once and forks the ranks.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import secrets
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from model.parallel.mesh import ContextParallel

Returned = TypeVar("Returned")

ROOT = Path(__file__).parents[2]


class Ranks:
    """The test's end of the rank processes."""

    def __init__(self, count: int, folder: Path) -> None:
        self._count = count
        self._folder = folder

    def __enter__(self) -> Self:
        key = secrets.token_hex()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANKS_KEY": key, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.model.ranks", str(self._count), str(self._folder)]
        with Listener(str(self._folder / "socket"), authkey=key.encode()) as listener:
            self._program = subprocess.Popen(command, env=environment, cwd=ROOT)
            connections = [listener.accept() for _ in range(self._count)]
        self._connections: dict[int, Connection] = {
            receive(connection): connection for connection in connections
        }
        return self

    def __exit__(self, *_) -> None:
        for connection in self._connections.values():
            connection.close()
        self._program.wait()

    def run(
        self, function: Callable[..., Returned], size: int, *arguments: Any, ring_degree: int = 1
    ) -> list[Returned]:
        """What a function returned on each of `size` ranks, perhaps with a ring."""
        for connection in self._connections.values():
            send(connection, (function, (size, ring_degree), arguments))
        outcomes = {rank: receive(connection) for rank, connection in self._connections.items()}
        failures = [outcome for outcome, failed in outcomes.values() if failed]
        assert not failures, "\n".join(failures)
        return [outcomes[rank][0] for rank in range(size)]


def main(count: int, folder: Path) -> None:
    """Fork the ranks and wait until they end."""
    # Imported before the fork, which takes seconds.
    import pytest  # noqa: F401

    import tests.model.rank_jobs  # noqa: F401

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=serve, args=(rank, count, folder)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def serve(rank: int, count: int, folder: Path) -> None:
    """Compute what is asked for until the other end closes."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    groups = groups_of(rank, count)
    with Client(str(folder / "socket"), authkey=os.environ["RANKS_KEY"].encode()) as connection:
        send(connection, rank)
        while True:
            try:
                call = connection.recv_bytes()
            except EOFError:
                break
            send(connection, answer(call, groups))
    dist.destroy_process_group()


def groups_of(rank: int, count: int) -> dict[tuple[int, int], ContextParallel]:
    """This rank's place in groups of each size and ring degree; the first group of a kind does the work."""
    import torch
    import torch.distributed as dist

    from model.parallel.mesh import SINGLE, ContextParallel, divide

    cpu = torch.device("cpu")
    kinds = [(2, 1), (count, 1), (2, 2), (count, 2), (count, count)]
    made = {(size, degree): divide(cpu, size, ring_degree=degree) for size, degree in kinds}
    three = dist.new_group([0, 1, 2])
    if rank < 3:
        made[3, 1] = ContextParallel(cpu, size=3, rank=rank, group=three)
        made[3, 3] = dataclasses.replace(made[3, 1], ring_and_heads=(made[3, 1], SINGLE))
    return {kind: parallel for kind, parallel in made.items() if parallel.replica == 0}


def send(connection: Connection, value) -> None:
    """Pickled here: what `Connection.send` does with tensors, shared file descriptors, is not wanted."""
    connection.send_bytes(pickle.dumps(value))


def receive(connection: Connection):
    return pickle.loads(connection.recv_bytes())


def answer(call: bytes, groups: dict[tuple[int, int], ContextParallel]):
    """What the function returns and False, or its traceback and True; None on ranks without a place."""
    try:
        function, group, arguments = pickle.loads(call)  # imports the function's module
        return (function(groups[group], *arguments) if group in groups else None), False
    except Exception:  # noqa: BLE001 a rank outlives the tests that fail on it
        return traceback.format_exc(), True


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
