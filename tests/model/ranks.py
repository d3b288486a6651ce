"""Rank processes that stay alive through a test run and compute what they are asked for by name.

The tests call `Ranks.run` with the name of a function of `tests.model.rank_jobs`, a number of ranks to share
the work, and arguments; they get what the function returned on each of those ranks. Run as a program, this
module imports the model once and forks the ranks.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import secrets
import subprocess
import sys
import traceback
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Self

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

    def run(self, job: str, size: int, *arguments, ring_degree: int = 1):
        """What the function of `rank_jobs` returned on each of `size` ranks, perhaps with a ring."""
        for connection in self._connections.values():
            send(connection, (job, (size, ring_degree), arguments))
        outcomes = {rank: receive(connection) for rank, connection in self._connections.items()}
        failures = [outcome for outcome, failed in outcomes.values() if failed]
        assert not failures, "\n".join(failures)
        return [outcomes[rank][0] for rank in range(size)]


def main(count: int, folder: Path) -> None:
    """Fork the ranks and wait until they end."""
    import tests.model.rank_jobs  # noqa: F401 imported before the fork, which takes seconds

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

    from tests.model import rank_jobs

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    groups = rank_jobs.groups(rank, count)
    with Client(str(folder / "socket"), authkey=os.environ["RANKS_KEY"].encode()) as connection:
        send(connection, rank)
        while True:
            try:
                job, group, arguments = receive(connection)
            except EOFError:
                break
            send(connection, answer(getattr(rank_jobs, job), groups.get(group), arguments))
    dist.destroy_process_group()


def send(connection: Connection, value) -> None:
    """Pickled here: what `Connection.send` does with tensors, shared file descriptors, is not wanted."""
    connection.send_bytes(pickle.dumps(value))


def receive(connection: Connection):
    return pickle.loads(connection.recv_bytes())


def answer(job, parallel, arguments):
    """What the function returns and False, or its traceback and True."""
    try:
        return (None if parallel is None else job(parallel, *arguments)), False
    except Exception:  # noqa: BLE001 a rank outlives the tests that fail on it
        return traceback.format_exc(), True


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
