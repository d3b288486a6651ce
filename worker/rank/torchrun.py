"""Start torchrun for one group: `python -m worker.rank.torchrun PARENT RANKS MODULE FOLDER SETUP`.

torchrun runs `MODULE` once for each rank of this machine and ends as soon as one rank does. It restarts
nothing: the supervisor starts a fresh process instead.

torchrun's usual store is a TCP server on all interfaces, without authentication, and torchrun unpickles what
lies in it. Here torchrun and the ranks meet in files of `FOLDER`, which only this user may enter.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from worker.process import die_with_parent
from worker.settings import RankSetup


def main(parent_pid: str, num_ranks: str, module: str, folder: str, setup: str) -> None:
    """Run the ranks. They are killed when this process ends."""
    die_with_parent(int(parent_pid))
    from torch.distributed.run import main as torchrun  # noqa: PLC0415 - takes seconds: `die_with_parent` comes first

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
