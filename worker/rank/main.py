"""One rank of a group: `python -m worker.rank.main SETUP PARENT`, started by torchrun on every GPU.

It loads the model once and stays warm. The leader (rank 0) hears orders from the supervisor and shares them
with the others, which wait in the gloo group of `worker.rank.consensus`; `worker.rank.run_job` does one. A
rank that is not sound ends at once and takes the group with it: the supervisor starts another.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Never

import torch

from jobs.logs import about, set_up_log
from jobs.store.holder import StopReason
from model.parallel.mesh import ContextParallel, FileRendezvous, join
from worker.channel import Channel, call
from worker.messages import GroupFailed, Message, Ready, RunJob, StopJob
from worker.process import die_with_parent
from worker.rank.consensus import Consensus
from worker.rank.engine import Engine
from worker.rank.leader import Contact, Leader
from worker.rank.progress import Experience
from worker.rank.run_job import Follower, Part, run_order
from worker.settings import DeviceName, RankSetup, VideoSettings

logger = logging.getLogger(__name__)

LoadEngine = Callable[[RankSetup, ContextParallel], Engine]

UNSOUND = 71  # exit status of a rank after an error that the group does not survive


def main(setup: str, parent_pid: str, load: LoadEngine) -> None:
    """Serve until somebody ends this process; `load` gives this rank's engine."""
    die_with_parent(int(parent_pid))
    threading.excepthook = _end_with_thread
    settings = RankSetup.model_validate_json(setup)
    set_up_log(settings.log_format)
    parallel = join(
        device_type(settings.device),
        None,
        settings.collective_timeout_s,
        rendezvous=_rendezvous(settings),
    )
    ranks = Consensus(settings.error_grace_s)
    supervisor = Supervisor(call(settings.socket)) if ranks.is_leader else None
    try:
        _serve(load(settings, parallel), ranks, supervisor, settings.video)
    except BaseException as error:  # noqa: BLE001 - the process ends here, and at once: no peer may wait for it
        traceback.print_exc()
        if supervisor:
            supervisor.say_if_there(GroupFailed(message=f"{type(error).__name__}: {error}"))
        sys.stderr.flush()
        os._exit(UNSOUND)


def _serve(engine: Engine, ranks: Consensus, supervisor: Supervisor | None, settings: VideoSettings) -> Never:
    """Do order after order, the leader those of the supervisor, the others the leader's."""
    pids = ranks.gather(os.getpid())
    # From here on a message says when to stop. A signal to all processes must not cut a step off.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if supervisor:
        supervisor.say(Ready(capability=engine.capability, pids=tuple(pids)))
        contact = Contact(supervisor.say, supervisor.wish)
        experience: Experience = {}
        dtype = engine.capability.dtype
        while True:
            run = ranks.share(supervisor.next_order())
            _run(run, engine, ranks, Leader(run, contact, settings, experience, dtype))
    while True:
        _run(ranks.share(None), engine, ranks, Follower())


def _run(run: RunJob, engine: Engine, ranks: Consensus, part: Part) -> None:
    with about(run.log_context):
        logger.info("begins")
        run_order(run, engine, ranks, part)
        logger.info("is done with it")


def _end_with_thread(failed: threading.ExceptHookArgs) -> None:
    """No rank goes on with a part of it missing."""
    traceback.print_exception(failed.exc_value)
    sys.stderr.flush()
    os._exit(UNSOUND)


def _rendezvous(settings: RankSetup) -> FileRendezvous | None:
    if settings.rendezvous_file is None:
        return None
    return FileRendezvous(settings.rendezvous_file, settings.num_ranks)


def device_type(wanted: DeviceName) -> str:
    """What a wish for a device comes to here."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


class Supervisor:
    """The leader's end of the connection, with a thread that hears."""

    def __init__(self, line: Channel) -> None:
        self._line = line
        self._orders: queue.SimpleQueue[RunJob] = queue.SimpleQueue()
        self._wishes: dict[str, StopReason] = {}
        threading.Thread(target=self._hear, name="supervisor", daemon=True).start()

    def say(self, message: Message) -> None:
        """Tell it. Raises OSError when it is gone."""
        self._line.send(message)

    def say_if_there(self, message: Message) -> None:
        """Tell it, if it still hears."""
        try:
            self._line.send(message)
        except OSError:
            traceback.print_exc()

    def next_order(self) -> RunJob:
        """Wait for one."""
        return self._orders.get()

    def wish(self, job_id: str) -> StopReason | None:
        """Why it wants this job to be left, if it does."""
        return self._wishes.get(job_id)

    def _hear(self) -> None:
        while (message := self._line.recv()) is not None:
            if isinstance(message, StopJob):
                self._wishes = {message.job_id: message.reason}  # one job runs at a time
            elif isinstance(message, RunJob):
                self._wishes = {}  # it may be the same job again, which was left before
                self._orders.put(message)
        os._exit(UNSOUND)  # nobody is there to work for


if __name__ == "__main__":
    from worker.rank.model_engine import load_engine

    main(sys.argv[1], sys.argv[2], load_engine)
