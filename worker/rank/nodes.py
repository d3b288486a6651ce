"""Let the nodes of a group meet, and end together when one of them is lost.

Each node runs torchrun for its own ranks. They meet at a TCP store, which node 0 serves while its torchrun
runs: that is one round. In the store, node 0 publishes the settings of the ranks, and each node shows every
second that it is alive. Node 0 ends its torchrun when another node left, came a second time, or shows no sign
of life; the others end theirs when the store does not answer. The next round begins with new processes.

torch's store has no password. Nobody but the nodes may reach its port: see `docs/security.md`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Never, Protocol

from pydantic import ValidationError
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from worker.rank.network import resolve
from worker.settings import RankSetup

logger = logging.getLogger(__name__)

BEAT_EVERY_S = 1.0
EXIT_NODE_LOST = 72  # exit status of torchrun after the end of a round
_ROUND = "round"
_OWN_SETTINGS = (  # those of each node; node 0 decides the others
    *("socket", "node_rank", "rendezvous", "checkpoint", "log_format"),
    *("weight_memory", "lora_memory_gib", "num_groups", "failure_file"),
)


class NodesDiffer(Exception):
    """The settings of this node and of node 0 do not fit together."""


class Counters(Protocol):
    """Count, as a store does that all nodes of a round reach."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, which is 0 at first, and return it. Raises RuntimeError if it is unreachable."""


def begin_round(setup: RankSetup) -> tuple[RankSetup, Store]:
    """Serve the store of a new round. Raises OSError if RENDEZVOUS is no address of this machine."""
    assert setup.rendezvous is not None
    endpoint = setup.rendezvous
    family, address = resolve(endpoint)
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        # Given a socket, the store listens on this address alone. torchrun uses the same server.
        store = TCPStore(
            *(endpoint.host, endpoint.port),
            is_master=True,
            timeout=timedelta(seconds=setup.collective_timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listening.detach(),
        )
    setup = setup.model_copy(update={"round_id": uuid.uuid4().hex})
    store.set(_ROUND, setup.model_dump_json())
    return setup, store


def join_round(setup: RankSetup) -> tuple[RankSetup, Store]:
    """Wait for a round of node 0. Return the settings of its ranks, as they apply to this node.

    Raises NodesDiffer, and RuntimeError if node 0 begins no round within `collective_timeout_s`.
    """
    assert setup.rendezvous is not None
    endpoint, timeout = setup.rendezvous, timedelta(seconds=setup.collective_timeout_s)
    store = TCPStore(endpoint.host, endpoint.port, is_master=False, timeout=timeout, wait_for_workers=False)
    try:
        published = RankSetup.model_validate_json(store.get(_ROUND))
    except ValidationError as error:
        raise NodesDiffer(f"node 0 runs another release: {error.errors(include_input=False)}") from error
    for name in ("nodes", "num_ranks"):
        here, there = getattr(setup, name), getattr(published, name)
        if here != there:
            raise NodesDiffer(f"{name} is {here} on node {setup.node_rank} and {there} on node 0")
    own = {name: getattr(setup, name) for name in _OWN_SETTINGS}
    return published.model_copy(update=own), store


class NodeHeartbeat:
    """Show in the store that this node is alive, and on node 0, look after the others.

    Args:
        store: the store of the round.
        node_rank: the number of this node; `num_nodes` is the number of all.
        timeout_s: a node whose heartbeat does not change for this long is lost.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Counters,
        node_rank: int,
        num_nodes: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._node_rank = node_rank
        self._others = range(1, num_nodes) if node_rank == 0 else ()
        self._timeout_s = timeout_s
        self._clock = clock
        self._beaten_at = clock()
        self._seen: dict[int, tuple[int, float]] = {}
        self._missing: list[int] | None = None

    def join(self) -> str | None:
        """Take part in the round. Return why this node cannot, None if it can."""
        if self._store.add(f"joined/{self._node_rank}", 1) > 1:
            return f"another worker was node {self._node_rank} of this round"
        return None

    def leave(self) -> None:
        """Tell node 0 that this node's ranks have ended."""
        with suppress(RuntimeError):  # node 0 has ended the round
            self._store.add(f"joined/{self._node_rank}", 1)

    def beat(self) -> str | None:
        """Show a sign of life. Return why the round is over, None while it goes on."""
        try:
            self._store.add(f"beats/{self._node_rank}", 1)
            lost = self._lost_node()
        except RuntimeError as error:
            return f"node 0 has ended the round: {str(error).splitlines()[0]}"
        self._beaten_at = self._clock()
        return lost

    @property
    def is_late(self) -> bool:
        """Return whether no `beat` has finished for `timeout_s`. Any thread may ask."""
        return self._clock() - self._beaten_at > self._timeout_s

    def _lost_node(self) -> str | None:
        missing = []
        for node in self._others:
            joined = self._store.add(f"joined/{node}", 0)
            if joined == 0:
                missing.append(node)
                continue
            if joined > 1:
                return f"the ranks of node {node} have ended"
            beats, now = self._store.add(f"beats/{node}", 0), self._clock()
            before, changed_at = self._seen.get(node, (-1, now))
            if beats != before:
                self._seen[node] = beats, now
            elif now - changed_at > self._timeout_s:
                return f"node {node} has shown no sign of life for {self._timeout_s:g} s"
        if self._others and missing != self._missing:
            self._missing = missing
            if missing:
                logger.info("waiting for nodes %s", missing)
            else:
                logger.info("all nodes have joined")
        return None


def end_process(reason: str) -> Never:
    """End torchrun; the kernel then kills its ranks. Nothing is waited for: a collective may block them."""
    logger.error("the round is over: %s", reason)
    os._exit(EXIT_NODE_LOST)


def keep_alive(
    heartbeat: NodeHeartbeat,
    end: Callable[[str], object] = end_process,
    on_beat: Callable[[], object] = lambda: None,
    every_s: float = BEAT_EVERY_S,
) -> None:
    """Beat in a thread, and call `end` with the reason when the round is over.

    A second thread notices when a call to the store does not return, as when the network is cut.
    """

    def beat() -> None:
        while (reason := heartbeat.beat()) is None:
            on_beat()
            time.sleep(every_s)
        end(reason)

    def watch() -> None:
        while not heartbeat.is_late:
            time.sleep(every_s / 2)
        end("node 0 does not answer")

    for name, target in (("node-heartbeat", beat), ("node-watch", watch)):
        threading.Thread(target=target, name=name, daemon=True).start()
