"""torchrun on a leash: `python -m worker.launch PARENT RANKS MODULE SETUP`, which the supervisor starts.

It runs `MODULE` once for every rank of this machine and ends as soon as one of them does. It starts nothing
again: the supervisor does that, in a fresh process.
"""

from __future__ import annotations

import os
import sys

from worker.leash import end_with


def main(parent_pid: str, num_ranks: str, module: str, setup: str) -> None:
    """Run the ranks; the setup is passed on, with the process that they may not outlive."""
    end_with(int(parent_pid))
    from torch.distributed.run import main as torchrun  # noqa: PLC0415 - seconds, and the leash comes first

    # A rank is asked to end by a message; what torchrun asks after a crash may be short.
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "1"
    options = [
        "--standalone",
        "--local-addr",
        "127.0.0.1",
        "--max-restarts",
        "0",
        "--nproc-per-node",
        num_ranks,
    ]
    torchrun([*options, "-m", module, setup, str(os.getpid())])


if __name__ == "__main__":
    main(*sys.argv[1:])
