"""Start torchrun for one group: `python -m worker.rank.torchrun PARENT_PID NUM_RANKS MODULE FOLDER SETUP`.

torchrun runs `MODULE` once for each rank, on this machine, and ends as soon as one rank does. It restarts
nothing: the supervisor starts a new process instead.

By default the ranks of torchrun meet at a TCP store, which listens on all interfaces without authentication
and whose values torchrun unpickles. Here torchrun and the ranks meet at files of `FOLDER`, which only this
user can enter.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from worker.process import die_with_parent
from worker.settings import RankSetup


def main(parent_pid: str, num_ranks: str, module: str, folder: str, setup: str) -> None:
    """Run the ranks until one of them ends. They are killed when this process ends."""
    die_with_parent(int(parent_pid))
    # Importing torch takes seconds, in which the parent may die.
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    rank_setup = RankSetup.model_validate_json(setup).model_copy(
        update={"rendezvous_file": Path(folder, "ranks")}
    )
    options = [
        *("--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file"),
        *("--rdzv-endpoint", str(Path(folder, "torchrun"))),
        *("--local-addr", "127.0.0.1"),
        *("--max-restarts", "0", "--nproc-per-node", num_ranks),
    ]
    torchrun([*options, "-m", module, rank_setup.model_dump_json(), str(os.getpid())])


if __name__ == "__main__":
    main(*sys.argv[1:])
