"""Start torchrun for a group, or for its ranks on this machine.

The command is `python -m worker.rank.torchrun PARENT_PID NUM_RANKS MODULE FOLDER SETUP`.

torchrun runs `MODULE` once for each rank (`worker.rank.start`), on this machine, and ends as soon as one rank
does. It restarts nothing: the supervisor starts a new process instead.

By default the ranks of torchrun meet at a TCP store, which listens on all interfaces without authentication
and whose values torchrun unpickles. Here torchrun and the ranks of one node meet at files of `FOLDER`, which
only this user can enter. The ranks of several nodes meet at the address that the operator names
(`worker.rank.nodes`), by torchrun's static rendezvous, which unpickles nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jobs.logs import set_up_log
from worker.first_failure import FAILURE
from worker.health import HealthReporter
from worker.process import die_with_parent
from worker.rank.network import interface_of, local_address
from worker.settings import RankSetup, use_interface

NO_KEEP_ALIVE = f"keep_alive_interval={365 * 24 * 3600}"
"""torchrun appends its keep-alive to the file every 5 s by default, and ends the ranks once it cannot."""


def main(arguments: list[str] | None = None) -> None:
    """Run the ranks until one of them ends. They are killed when this process ends."""
    options = _parse(arguments)
    die_with_parent(options.parent)
    setup = RankSetup.model_validate_json(options.setup)
    if options.weight_memory is not None:  # torchrun passes no open file to the ranks
        weight_memory = Path(f"/proc/{os.getpid()}/fd/{options.weight_memory}")
        setup = setup.model_copy(update={"weight_memory": weight_memory})
    if options.folder:
        setup = setup.model_copy(update={"failure_file": Path(options.folder, FAILURE)})
    if setup.nodes > 1:
        set_up_log(setup.log_format)
        _run_with_other_nodes(options, setup)
    else:
        setup = setup.model_copy(update={"rendezvous_file": Path(options.folder, "ranks")})
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-conf", f"store_type=file,{NO_KEEP_ALIVE}"]
        endpoint = str(Path(options.folder, "torchrun"))
        _run([*rendezvous, "--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1"], options, setup)


def _run(rendezvous: list[str], options: argparse.Namespace, setup: RankSetup) -> None:
    # Importing torch takes seconds, in which the parent may die.
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    processes = ["--max-restarts", "0", "--nproc-per-node", str(options.num_ranks)]
    # By default every start leaves a folder in the system's temporary folder.
    logs = ["--log-dir", os.devnull]
    rank = ["-m", "worker.rank.start", options.module, setup.model_dump_json(), str(os.getpid())]
    torchrun([*rendezvous, *processes, *logs, *rank])


def _run_with_other_nodes(options: argparse.Namespace, setup: RankSetup) -> None:
    from worker.rank import nodes  # noqa: PLC0415 - imports torch

    assert setup.rendezvous is not None
    address = local_address(setup.rendezvous)
    use_interface(interface_of(address))
    is_first = setup.node_rank == 0
    setup, store = nodes.begin_round(setup) if is_first else nodes.join_round(setup)
    heartbeat = nodes.NodeHeartbeat(store, setup.node_rank, setup.nodes, setup.node_timeout_s)
    if refusal := heartbeat.join():
        nodes.end_process(refusal)
    nodes.keep_alive(heartbeat, on_beat=_health_report(options.health_pipe))
    try:
        _run(
            [
                *("--nnodes", str(setup.nodes), "--node-rank", str(setup.node_rank)),
                *("--rdzv-backend", "static", "--rdzv-endpoint", str(setup.rendezvous)),
                *("--rdzv-id", str(setup.round_id), "--local-addr", address),
                *("--rdzv-conf", f"timeout={int(setup.collective_timeout_s)}"),
            ],
            options,
            setup,
        )
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it is
        traceback.print_exc()
    heartbeat.leave()
    nodes.end_process("the ranks of this node have ended")


def _health_report(pipe: int | None) -> Callable[[], None]:
    """Return what reports this node as ready, to a launcher that has no supervisor to do it."""
    if pipe is None:
        return lambda: None
    return partial(HealthReporter(pipe).report, "ready")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.rank.torchrun")
    parser.add_argument("parent", type=int)
    parser.add_argument("num_ranks", type=int)
    parser.add_argument("module")
    parser.add_argument("folder")
    parser.add_argument("setup")
    parser.add_argument("--health-pipe", type=int)
    parser.add_argument("--weight-memory", type=int)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
