"""Run a group with ranks on two nodes: processes of this machine, or two network namespaces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from stack.redis_server import RedisServer
from tests.attacks.namespaces import Namespace
from tests.servers import free_port, redis_program
from tests.worker.running_worker import IMPATIENT, RunningWorker, running_worker

NODE_TIMEOUT_S = 30.0
LOOPBACK = (Namespace("", "127.0.0.1"), Namespace("", "127.0.0.1"))
NO_REDIS = "redis://127.0.0.1:1"


@dataclass(frozen=True)
class RunningNodes:
    """The two nodes of a running group. Only `first` has jobs."""

    first: RunningWorker
    second: RunningWorker

    def kill_ranks_of_second(self) -> list[psutil.Process]:
        """Kill torchrun and the ranks of the second node, as when the machine is lost. Return them."""
        processes = self.second.look()
        for process in processes:
            process.kill()
        return processes


@contextmanager
def running_nodes(
    folder: Path, namespaces: tuple[Namespace, Namespace] = LOOPBACK, **settings: object
) -> Iterator[RunningNodes]:
    """Run two nodes of two ranks each, the first one with a Redis. Check that they leave no process."""
    settings = {
        "nodes": 2,
        "ranks": 2,
        "rendezvous": f"{namespaces[0].address}:{free_port()}",
        "node_timeout_s": NODE_TIMEOUT_S,
        "lease_s": IMPATIENT["lease_s"],
        **settings,
    }
    folders = folder / "node-0", folder / "node-1"
    for each in folders:
        each.mkdir()
    prefixes = [namespace.command() for namespace in namespaces]
    with (
        RedisServer(folder / "redis", redis_program()) as redis,  # a Unix socket, seen in every namespace
        running_worker(folders[0], redis.url, prefixes[0], **settings) as first,
        running_worker(folders[1], NO_REDIS, prefixes[1], node_rank=1, **settings) as second,
    ):
        yield RunningNodes(first, second)
