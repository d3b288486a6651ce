"""Serve jobs on one rank: `python -m worker.rank.main SETUP`, run by `worker.rank.start` for each GPU.

The rank loads the model once. The leader (rank 0) receives jobs from the supervisor and broadcasts them to
the other ranks, and `worker.rank.run_job` runs each on all ranks. A rank that is not sound ends at once.
torchrun then ends the others, and the supervisor starts a new group.

In a world (`CONTEXT_PARALLEL=auto`) every rank receives from the supervisor the jobs that it takes part in,
and the first rank of a job's block is its leader.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Never

import torch.distributed as dist

from jobs.logs import about, set_up_log
from jobs.store.holder import StopReason
from model.parallel.device import choose_device, configure_allocator
from model.parallel.mesh import ContextParallel, FileRendezvous, StoreRendezvous, join
from model.spec.errors import GroupError
from worker.channel import Channel, connect
from worker.first_failure import write_failure
from worker.messages import GroupFailed, Message, RankConnected, Ready, RunJob, StopJob
from worker.rank.consensus import Consensus
from worker.rank.engine import Engine
from worker.rank.leader import Leader
from worker.rank.progress import UnitTimes
from worker.rank.run_job import run_job
from worker.settings import RankSetup

logger = logging.getLogger(__name__)

LoadEngine = Callable[[RankSetup, ContextParallel], Engine]

EXIT_FAILED = 71  # exit status of a rank after an error that the group does not survive


def main(setup: str, load: LoadEngine) -> None:
    """Serve jobs until the process is killed. `load` returns the engine of this rank."""
    settings = RankSetup.model_validate_json(setup)
    set_up_log(settings.log_format)
    configure_allocator()
    supervisor: SupervisorConnection | None = None
    local_rank = dist.get_node_local_rank(fallback_rank=0)
    rank = settings.node_rank * settings.ranks_per_node + local_rank
    report_failure = partial(write_failure, settings.failure_file, rank)
    threading.excepthook = partial(_exit_after_thread_failure, report_failure)
    if settings.elastic or rank == 0:
        supervisor = SupervisorConnection(connect(settings.socket), on_disconnect=exit_failed)
        if settings.elastic:
            supervisor.send(RankConnected(rank=rank))
    try:
        parallel = join(
            choose_device(settings.device, settings.checkpoint),
            "auto" if settings.elastic else None,
            settings.collective_timeout_s,
            rendezvous=_rendezvous(settings),
            shard_weights=settings.shard_weights,
            ring_degree=settings.ring_degree,
        )
        world = Consensus(settings.error_grace_s)
        memberships = _memberships(load(settings, parallel), parallel, world, settings)
        _serve(memberships, world, supervisor, settings, report_failure)
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it is
        reason = f"{type(error).__name__}: {error}"
        report_failure(reason)  # first: the others fail as soon as this process ends
        traceback.print_exc()
        if supervisor:
            with suppress(OSError):  # the supervisor is gone, too
                supervisor.send(GroupFailed(message=reason))
        exit_failed()


def exit_failed() -> Never:
    """End this process without waiting for anything.

    Regular interpreter shutdown would join threads and destroy process groups. Both can block for ever when
    another rank hangs in a collective, and the supervisor must learn of the failure now.
    """
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


@dataclass(frozen=True)
class Membership:
    """The membership of this rank in the group, or in one of the blocks of its world.

    Attributes:
        engine: generates with the ranks of the block.
        consensus: communicates with them.
        unit_times: measured times of the jobs that they ran.
    """

    engine: Engine
    consensus: Consensus
    unit_times: UnitTimes = field(default_factory=dict)


def _memberships(
    engine: Engine, parallel: ContextParallel, world: Consensus, settings: RankSetup
) -> dict[int, Membership]:
    """Return the membership of this rank in a block of each width; in a fixed group, there is only one.

    Widths that the engine refuses are left out.
    """
    if not settings.elastic:
        return {world.size: Membership(engine, world)}
    memberships = {}
    for block in (parallel, *parallel.wider):
        with suppress(GroupError):
            memberships[block.size] = Membership(
                engine.on(block), Consensus(settings.error_grace_s, block.size)
            )
    return memberships


def _serve(
    memberships: Mapping[int, Membership],
    world: Consensus,
    supervisor: SupervisorConnection | None,
    settings: RankSetup,
    report_failure: Callable[[str], None] = lambda _: None,
) -> Never:
    """Run one job after the other: the leader receives them, the other ranks get them from the leader.

    `report_failure` tells the supervisor why this rank ends without its help.
    """
    capability = memberships[min(memberships)].engine.capability
    pids, weights = zip(*world.all_gather((os.getpid(), capability.weights)), strict=True)
    check_weights(weights)
    # Any rank of a world may lead, and only the first of a node knows the weights.
    capability = capability.model_copy(update={"weights": weights[0]})
    # The supervisor decides when a job stops. A signal to all processes must not interrupt a step.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if supervisor and world.is_leader:
        on_this_node = pids[: settings.ranks_per_node]
        supervisor.send(Ready(capability=capability, pids=on_this_node, widths=tuple(memberships)))
    while True:
        run = supervisor.next_job() if supervisor else None
        if not settings.elastic:
            run = world.broadcast(run)
        assert run is not None
        membership = memberships[run.width or world.size]
        with about(run.log_context):
            logger.info("job started on rank %d", world.rank)
            leader: Leader | None = None
            if supervisor and membership.consensus.is_leader:
                get_stop_request = partial(supervisor.stop_request, run.job_id)
                leader = Leader(
                    run,
                    supervisor.send,
                    get_stop_request,
                    settings.video,
                    membership.unit_times,
                    capability,
                )
            run_job(run, membership.engine, membership.consensus, leader, report_failure)
            logger.info("job ended on rank %d", world.rank)


def check_weights(of_ranks: Sequence[Mapping[str, str]]) -> None:
    """Compare the fingerprints that the first rank of each node has. Raises GroupError if they differ."""
    first = of_ranks[0]
    for rank, weights in enumerate(of_ranks):
        parts = sorted(part for part in {*first, *weights} if first.get(part) != weights.get(part))
        if weights and parts:
            raise GroupError(f"the weights of rank {rank} differ from those of rank 0: {', '.join(parts)}")


def _exit_after_thread_failure(
    report_failure: Callable[[str], None], failed: threading.ExceptHookArgs
) -> None:
    report_failure(f"{failed.exc_type.__name__}: {failed.exc_value}")
    traceback.print_exception(failed.exc_value)
    exit_failed()


def _rendezvous(settings: RankSetup) -> FileRendezvous | StoreRendezvous | None:
    if settings.rendezvous and settings.round_id:
        first_rank = settings.node_rank * settings.ranks_per_node
        host, port = settings.rendezvous.host, settings.rendezvous.port
        return StoreRendezvous(host, port, settings.round_id, first_rank, settings.num_ranks)
    if settings.rendezvous_file is None:
        return None
    return FileRendezvous(settings.rendezvous_file, settings.num_ranks)


class SupervisorConnection:
    """Exchange messages with the supervisor. A thread receives them.

    `on_disconnect` is called in the thread when the connection closes: without a supervisor there is no
    work for a rank. It must not wait for the main thread, which may be blocked in a collective.
    """

    def __init__(self, channel: Channel, on_disconnect: Callable[[], object]) -> None:
        self._channel = channel
        self._on_disconnect = on_disconnect
        self._jobs: queue.SimpleQueue[RunJob] = queue.SimpleQueue()
        self._stop: StopJob | None = None
        threading.Thread(target=self._receive, name="supervisor-receiver", daemon=True).start()

    def send(self, message: Message) -> None:
        """Send a message. Raises OSError when the supervisor is gone."""
        self._channel.send(message)

    def next_job(self) -> RunJob:
        """Wait for the next job."""
        return self._jobs.get()

    def stop_request(self, job_id: str) -> StopReason | None:
        """Return why this job is to stop, None while it is not."""
        stop = self._stop
        return stop.reason if stop and stop.job_id == job_id else None

    def _receive(self) -> None:
        while (message := self._channel.recv()) is not None:
            if isinstance(message, StopJob):
                self._stop = message
            elif isinstance(message, RunJob):
                self._stop = None  # an earlier attempt of the same job may have been stopped
                self._jobs.put(message)
        self._on_disconnect()


if __name__ == "__main__":
    from worker.rank.model_engine import load_engine

    main(sys.argv[1], load_engine)
