from __future__ import annotations

import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

from model.parallel.mesh import StoreRendezvous
from tests.servers import free_port
from worker.rank.main import _rendezvous
from worker.rank.nodes import (
    NodeHeartbeat,
    NodesDiffer,
    begin_round,
    join_round,
    keep_alive,
)
from worker.settings import Endpoint, RankSetup, WorkerSettings

TIMEOUT_S = 10.0


class MemoryStore:
    """Counters in memory, which can become unreachable."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.is_reachable = True

    def add(self, key: str, amount: int, /) -> int:
        if not self.is_reachable:
            raise RuntimeError("Connection reset by peer\nframe #0: c10::Error")
        self._counts[key] += amount
        return self._counts[key]


class Round:
    """The heartbeats of two nodes under a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.store = MemoryStore()
        self.first, self.second = self.node(0), self.node(1)
        assert self.first.join() is None

    def node(self, node_rank: int) -> NodeHeartbeat:
        return NodeHeartbeat(self.store, node_rank, 2, TIMEOUT_S, lambda: self.now)


@pytest.fixture
def round_() -> Round:
    return Round()


def test_node_that_has_not_joined_is_waited_for(round_):
    for _ in range(3):
        assert round_.first.beat() is None
        round_.now += 1000


def test_node_that_beats_is_not_lost(round_):
    assert round_.second.join() is None
    for _ in range(100):
        assert (round_.second.beat(), round_.first.beat()) == (None, None)
        round_.now += TIMEOUT_S


def test_node_that_does_not_beat_is_lost_after_the_timeout(round_):
    round_.second.join()
    round_.second.beat()
    assert round_.first.beat() is None
    round_.now += TIMEOUT_S
    assert round_.first.beat() is None
    round_.now += 0.1
    assert round_.first.beat() == "node 1 has shown no sign of life for 10 s"


def test_node_whose_ranks_ended_is_noticed_at_once(round_):
    round_.second.join()
    assert round_.first.beat() is None
    round_.second.leave()
    assert round_.first.beat() == "the ranks of node 1 have ended"


def test_node_that_starts_again_cannot_join_the_same_round_and_ends_it(round_):
    round_.second.join()
    assert round_.node(1).join() == "another worker was node 1 of this round"
    assert round_.first.beat() == "the ranks of node 1 have ended"


def test_end_of_the_store_ends_the_round_for_the_other_nodes(round_):
    round_.second.join()
    round_.store.is_reachable = False
    assert round_.second.beat() == "node 0 has ended the round: Connection reset by peer"
    round_.second.leave()  # raises nothing


def test_node_is_late_when_no_beat_finishes_within_the_timeout(round_):
    round_.second.join()
    round_.second.beat()
    round_.now += TIMEOUT_S
    assert not round_.second.is_late
    round_.now += 0.1
    assert round_.second.is_late
    round_.second.beat()
    assert not round_.second.is_late


class Ends:
    """The reasons for which a round ended."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.happened = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.happened.set()


def test_threads_end_the_round_when_the_store_is_lost(round_):
    beats, end = threading.Semaphore(0), Ends()
    keep_alive(round_.second, end, on_beat=beats.release, every_s=0.001)
    assert beats.acquire(timeout=30)
    round_.store.is_reachable = False
    assert end.happened.wait(30)
    round_.now += 2 * TIMEOUT_S  # ends the other thread
    assert end.reasons[0] == "node 0 has ended the round: Connection reset by peer"


def test_threads_end_the_round_when_a_call_to_the_store_does_not_return(round_, monkeypatch):
    may_return, end = threading.Event(), Ends()
    monkeypatch.setattr(round_.store, "add", lambda *_: may_return.wait(30) and 1)
    keep_alive(round_.second, end, every_s=0.001)
    round_.now += 2 * TIMEOUT_S
    assert end.happened.wait(30)
    assert end.reasons == ["node 0 does not answer"]
    round_.store.is_reachable = False
    monkeypatch.undo()
    may_return.set()


def setup_of(node_rank: int, port: int, **changes: object) -> RankSetup:
    settings = WorkerSettings(
        checkpoint=Path(f"/models/{node_rank}"),
        nodes=2,
        ranks=2,
        node_rank=node_rank,
        rendezvous=f"127.0.0.1:{port}",
        start_limit_s=30,
        stall_s=30,
    )
    return settings.rank_setup(Path("/run/sock")).model_copy(update=changes)


def test_node_takes_the_settings_of_node_0_and_keeps_its_own_checkpoint():
    port = free_port()
    first, server = begin_round(setup_of(0, port, dtype="bfloat16", quantize="int8"))
    second, store = join_round(setup_of(1, port))
    assert (second.dtype, second.quantize, second.round_id) == ("bfloat16", "int8", first.round_id)
    assert (second.node_rank, second.checkpoint) == (1, Path("/models/1"))
    assert store.add("key", 1) == server.add("key", 0) == 1


def test_node_keeps_its_own_memory_for_loras():
    port = free_port()
    _, _store = begin_round(setup_of(0, port, weight_memory=Path("/proc/1111/fd/5"), lora_memory_gib=100))
    own = {"weight_memory": Path("/proc/2222/fd/7"), "lora_memory_gib": 0}
    joined, _ = join_round(setup_of(1, port, **own))
    assert (joined.weight_memory, joined.lora_memory_gib) == (Path("/proc/2222/fd/7"), 0)


def test_each_round_has_its_own_name():
    names = []
    for _ in range(2):
        setup, _store = begin_round(setup_of(0, free_port()))
        names.append(setup.round_id)
    assert names[0] != names[1]


def test_store_listens_on_the_named_address_alone():
    port = free_port()
    _, _store = begin_round(setup_of(0, port))
    with socket.create_connection(("127.0.0.1", port), timeout=60):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=60)


def test_rendezvous_at_an_address_of_another_machine_is_refused():
    endpoint = Endpoint(host="192.0.2.1", port=29500)
    with pytest.raises(OSError, match="Cannot assign requested address"):
        begin_round(setup_of(0, 1, rendezvous=endpoint))


def test_node_with_another_number_of_ranks_is_refused():
    port = free_port()
    _, _store = begin_round(setup_of(0, port))
    with pytest.raises(NodesDiffer, match="num_ranks is 6 on node 1 and 4 on node 0"):
        join_round(setup_of(1, port, num_ranks=6))


def test_node_of_another_release_is_refused():
    port = free_port()
    _, store = begin_round(setup_of(0, port))
    store.set("round", '{"nodes": 2}')
    with pytest.raises(NodesDiffer, match="node 0 runs another release"):
        join_round(setup_of(1, port))


def test_ranks_are_numbered_by_node():
    setup = setup_of(1, 29500, round_id="r")
    rendezvous = _rendezvous(setup)
    assert isinstance(rendezvous, StoreRendezvous)
    assert (rendezvous.first_rank, rendezvous.num_ranks, rendezvous.name) == (2, 4, "r")
    assert _rendezvous(setup.model_copy(update={"rendezvous": None})) is None
