"""A Redis that is not away, but stalls, refuses writes, is full or was demoted to a replica."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from jobs.connect import connect, redis_reached
from jobs.errors import JobNotFound, Unavailable
from jobs.maintenance import sweep
from jobs.queue import TicketQueue, consume
from jobs.redis_client import DeadlineRetry, Outage, error_code
from jobs.registration import GroupRegistration
from jobs.store import memory
from jobs.store.job_store import JobStore
from jobs.store.memory import MemoryGuard
from tests.jobs.examples import LEASE_S, a_result, a_submission
from tests.redis_fleet import RedisProcess
from tests.waiting import wait_until

DEADLINE_S = 0.5  # of commands that must fail
LONG_DEADLINE_S = 10.0  # of commands that fail, and must succeed afterwards on a busy machine, too
SLACK_S = 20.0  # a busy machine is slow, but without the deadline a command would never end


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def redis(server: RedisProcess) -> Iterator[Redis]:
    with connect(server.url) as redis:
        yield redis


@pytest.fixture
def store(redis: Redis) -> JobStore:
    return JobStore(redis)


@pytest.fixture
def hurried(server: RedisProcess) -> Iterator[JobStore]:
    """Yield a store whose commands have a short deadline."""
    with connect(server.url, DEADLINE_S) as redis:
        yield JobStore(redis)


def answers(store: JobStore) -> bool:
    try:
        store.client.list_jobs()
    except Unavailable:
        return False
    return True


@contextmanager
def stalled(server: RedisProcess) -> Iterator[None]:
    server.send(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send(signal.SIGCONT)


def seconds_until_unavailable(call: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(Unavailable):
        call()
    return time.monotonic() - began


class TestStalled:
    def test_command_ends_at_its_deadline(self, server: RedisProcess, hurried: JobStore):
        wait_until(lambda: answers(hurried))
        with stalled(server):
            assert DEADLINE_S / 2 < seconds_until_unavailable(hurried.client.list_jobs) < DEADLINE_S + SLACK_S

    def test_new_connection_ends_at_the_deadline(self, server: RedisProcess, hurried: JobStore):
        with stalled(server):
            assert seconds_until_unavailable(hurried.client.list_jobs) < DEADLINE_S + SLACK_S

    def test_only_one_command_at_a_time_waits_long_once_one_was_in_vain(self, server: RedisProcess):
        outage = Outage()
        with connect(server.url) as hurried, connect(server.url) as patient, ThreadPoolExecutor(8) as threads:
            for redis, deadline_s in ((hurried, 0.1), (patient, 30.0)):
                redis.connection_pool.connection_kwargs["retry"] = DeadlineRetry(deadline_s, outage)
            with stalled(server):
                seconds_until_unavailable(JobStore(hurried).client.list_jobs)
                client = JobStore(patient).client
                probe = threads.submit(client.list_jobs)
                wait_until(lambda: outage._is_probing)
                list(threads.map(lambda _: seconds_until_unavailable(client.list_jobs), range(14)))
                assert not probe.done()
            assert probe.result() == []

    def test_first_command_after_the_stall_succeeds(self, server: RedisProcess):
        with connect(server.url, LONG_DEADLINE_S) as redis:
            store = JobStore(redis)
            store.client.list_jobs()
            with stalled(server):
                seconds_until_unavailable(store.client.list_jobs)
            assert store.client.list_jobs() == []

    def test_first_command_after_a_restart_succeeds(
        self, server: RedisProcess, caplog: pytest.LogCaptureFixture
    ):
        with connect(server.url, LONG_DEADLINE_S) as redis:
            store = JobStore(redis)
            store.client.submit(a_submission(id="kept"))
            server.end(signal.SIGKILL)
            seconds_until_unavailable(store.client.list_jobs)
            server.start()
            for _ in range(2):
                assert [job.id for job in store.client.list_jobs()] == ["kept"]
        assert caplog.text.count("Redis answers again") == 1


def refuse_to_save(server: RedisProcess, redis: Redis) -> None:
    (server.folder / "dump.rdb").mkdir()  # where Redis puts its snapshot
    redis.config_set("save", "3600 1")
    redis.bgsave()
    wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")


def miss_replicas(_: RedisProcess, redis: Redis) -> None:
    redis.config_set("min-replicas-to-write", "1")


def fill_up(_: RedisProcess, redis: Redis) -> None:
    redis.config_set("maxmemory", "1")


def become_a_replica(_: RedisProcess, redis: Redis) -> None:
    redis.replicaof("127.0.0.1", "1")


every_refusal = pytest.mark.parametrize("fall_ill", [refuse_to_save, miss_replicas, become_a_replica])


def recover(redis: Redis) -> None:
    redis.replicaof("NO", "ONE")
    redis.config_set("save", "")
    redis.config_set("min-replicas-to-write", "0")
    redis.config_set("maxmemory", "0")


class TestRefusedWrites:
    @every_refusal
    def test_nothing_is_lost_and_no_attempt_is_used(
        self,
        server: RedisProcess,
        store: JobStore,
        hurried: JobStore,
        fall_ill: Callable[[RedisProcess, Redis], None],
    ):
        store.client.submit(a_submission(id="running"))
        claim = store.holder.claim("a", lease_s=600.0)  # seven calls wait for their deadline
        assert claim is not None
        with server.client() as admin:
            fall_ill(server, admin)
            for call in (
                lambda: hurried.client.submit(a_submission()),
                lambda: hurried.client.cancel("running"),
                lambda: hurried.holder.renew_lease(claim),
                lambda: hurried.holder.succeed(claim, a_result(claim), {}),
                hurried.maintenance.sweep,
                lambda: TicketQueue(hurried.holder._redis).enqueue("running"),
                lambda: GroupRegistration(hurried.holder._redis, "a").heartbeat("busy", ranks=1),
            ):
                assert seconds_until_unavailable(call) < DEADLINE_S + SLACK_S
            recover(admin)
        store.maintenance.sweep()
        assert store.holder.renew_lease(claim) is None
        assert store.holder.succeed(claim, a_result(claim), {}) == "succeeded"
        assert store.client.get("running").attempt == 1

    def test_client_follows_the_name_to_the_new_primary(self, tmp_path: Path):
        """A Kubernetes Service or a DNS name moves on, while the demoted server keeps its connections."""
        name = tmp_path / "name.sock"
        sockets = [tmp_path / f"{number}.sock" for number in range(2)]
        with (
            RedisProcess(tmp_path / "0", ("--unixsocket", str(sockets[0]))) as old,
            RedisProcess(tmp_path / "1", ("--unixsocket", str(sockets[1]))) as new,
        ):
            name.symlink_to(sockets[0])
            with connect(f"unix://{name}") as redis, old.client() as admin:
                store = JobStore(redis)
                store.client.submit(a_submission(id="before"))
                (tmp_path / "next").symlink_to(sockets[1])
                (tmp_path / "next").replace(name)
                admin.replicaof("127.0.0.1", str(new.port))
                store.client.submit(a_submission(id="after"))
            with new.client() as admin:
                assert admin.exists("longcat:job:after")


class TestFull:
    def test_running_job_can_end_and_memory_can_be_freed(self, redis: Redis):
        store = JobStore(redis, retention_s=0.001)
        for name in ("ended", "running", "cancelled", "deleted"):
            store.client.submit(a_submission(id=name))
        ended, running = (store.holder.claim("a", LEASE_S) for _ in range(2))
        assert ended is not None
        assert running is not None
        store.holder.succeed(ended, a_result(ended), {})
        redis.config_set("maxmemory", "1")
        assert store.holder.renew_lease(running) is None
        store.holder.save_checkpoint(running, {"step": 1})
        assert store.holder.succeed(running, a_result(running), {}) == "succeeded"
        assert store.client.cancel("cancelled").status == "cancelled"
        assert store.client.delete("deleted")
        time.sleep(0.01)  # longer than the retention
        assert set(store.maintenance.sweep().expired) == {"ended", "running", "cancelled"}
        with pytest.raises(Unavailable, match="full"):
            store.client.submit(a_submission())
        with pytest.raises(JobNotFound):
            store.client.get("ended")

    def test_queued_jobs_run_although_rq_cannot_deliver_their_tickets(
        self, redis: Redis, store: JobStore, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("jobs.queue.PAUSE_S", 0.01)
        for name in ("first", "second"):
            store.client.submit(a_submission(id=name))
            TicketQueue(redis).enqueue(name)
        redis.config_set("maxmemory", "1")

        def run_next_job() -> None:
            if claim := store.holder.claim("a", LEASE_S):
                store.holder.succeed(claim, a_result(claim), {})

        consume(redis, run_next_job, lambda: store.client.counts()["succeeded"] == 2)
        assert TicketQueue(redis).count() == 2

    def test_new_jobs_are_refused_before_redis_is_full(self, redis: Redis, store: JobStore):
        used = redis.info("memory")["used_memory"]
        redis.config_set("maxmemory", str(used + (32 << 20)))
        MemoryGuard(redis, reserve=0.1).check()
        with pytest.raises(Unavailable, match="almost full"):
            MemoryGuard(redis, reserve=0.99).check()
        store.client.submit(a_submission())  # the reserve

    def test_memory_without_limit_is_never_full(self, redis: Redis):
        MemoryGuard(redis, reserve=0.99).check()

    def test_memory_is_measured_once_a_second(
        self, redis: Redis, server: RedisProcess, monkeypatch: pytest.MonkeyPatch
    ):
        times_s = iter([100.0, 100.9])
        monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=times_s.__next__))
        guard = MemoryGuard(redis, reserve=0.1)
        guard.check()
        with stalled(server):
            guard.check()


class TestRestart:
    def test_jobs_before_the_cut_of_a_truncated_file_are_kept(self, server: RedisProcess, store: JobStore):
        for name in ("first", "second"):
            store.client.submit(a_submission(id=name))
        server.end(signal.SIGKILL)
        files = [path for path in server.folder.rglob("*.aof") if path.stat().st_size]
        newest = max(files, key=lambda path: path.stat().st_size)
        with newest.open("r+b") as file:
            file.truncate(newest.stat().st_size - 10)
        server.start()
        assert [job.id for job in store.client.list_jobs()] == ["first"]
        sweep(store, TicketQueue(store.holder._redis))
        claim = store.holder.claim("a", LEASE_S)
        assert claim is not None
        assert claim.job.id == "first"

    def test_scripts_are_loaded_again_after_a_flush(self, redis: Redis, store: JobStore):
        store.client.submit(a_submission(id="first"))
        redis.script_flush()
        assert store.client.cancel("first").status == "cancelled"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("MISCONF Redis is configured to save", "MISCONF"),
        ("Error running script (call to f_1): @user_script:1: -READONLY You can't write", "READONLY"),
        (
            "Command # 1 (HSET rq:job) of pipeline caused error: NOREPLICAS Not enough good replicas",
            "NOREPLICAS",
        ),
        ("wrong number of arguments", ""),
    ],
)
def test_code_is_found_wherever_redis_puts_it(text: str, code: str):
    assert error_code(ResponseError(text)) == code


def test_error_of_the_command_itself_is_raised(redis: Redis):
    redis.set("longcat:text", "text")
    with pytest.raises(ResponseError, match="WRONGTYPE"), redis_reached():
        redis.lpush("longcat:text", "item")
