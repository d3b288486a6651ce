"""Run the ranks of a node that is not the first of its group.

Only node 0 has a supervisor, Redis and the storage. The other nodes run torchrun with their ranks, again and
again: it waits for a round of node 0, takes part in it, and ends with it (`worker.rank.nodes`).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from worker.launcher import EXIT_UNUSABLE, POLL_S, RestartingProcess, offer_probes
from worker.settings import WorkerSettings, group_environment
from worker.weight_memory import create_weight_memory, inherited_files, weight_memory_option

logger = logging.getLogger(__name__)


def follow(settings: WorkerSettings) -> int:
    """Take part in the rounds of node 0 until SIGTERM or SIGINT. Return the exit status.

    Then a round may go on for `DRAIN_S`, in which node 0 can save its job and end it.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    memory = create_weight_memory()
    process = RestartingProcess(
        f"torchrun of node {settings.node_rank}",
        [*torchrun_command(settings), *weight_memory_option(memory)],
        settings.stuck_s,
        group_environment(settings, 0),
        own_session=True,
        open_files=inherited_files(memory),
    )
    with ExitStack() as stack:
        if not offer_probes(stack, settings, lambda: [process.health()]):
            return EXIT_UNUSABLE
        logger.info("node %d of %d follows %s", settings.node_rank, settings.nodes, settings.rendezvous)
        while not stopping.wait(POLL_S):
            process.poll()
        process.wait(settings.drain_s if process.health() == "ready" else 0.0)
    return 0


def torchrun_command(settings: WorkerSettings) -> list[str]:
    """Return the command line of torchrun, which dies with this process."""
    setup = settings.rank_setup(Path())  # no rank of this node talks to a supervisor
    return [
        *(sys.executable, "-m", "worker.rank.torchrun", str(os.getpid())),
        *(str(settings.local_ranks_per_group), settings.rank_module, "", setup.model_dump_json()),
    ]
