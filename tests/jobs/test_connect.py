"""Reaching Redis, and refusing one that is not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ResponseError

from jobs.connect import check_server, connect, redis_reached
from jobs.errors import Unavailable, UnfitServer
from jobs.store.job_store import JobStore
from stack.redis_server import RedisServer
from tests.jobs.examples import LEASE_S, a_submission
from tests.servers import redis_program
from tests.waiting import wait_until

NOWHERE = "redis://127.0.0.1:1"


def submit_job(redis: Redis) -> None:
    """Write in a script."""
    JobStore(redis).client.submit(a_submission())


def write_key(redis: Redis) -> None:
    """Write without a script."""
    with redis_reached():
        redis.set("longcat:test", "value")


every_write = pytest.mark.parametrize("write", [submit_job, write_key])


@pytest.fixture
def keeps(redis: Redis) -> Iterator[Redis]:
    """The Redis of the tests, with its settings put back afterwards."""
    names = ("appendonly", "appendfsync", "maxmemory-policy", "maxmemory", "min-replicas-to-write")
    before = [redis.config_get(name) for name in names]
    yield redis
    for settings in before:
        for name, value in settings.items():
            redis.config_set(str(name), str(value))


class Old(Redis):
    """Says that it is an old server."""

    def info(self, *args: object, **options: object) -> dict[str, object]:
        return {"redis_version": "6.0.16"}


class Counted(ConstantBackoff):
    """Counts how often it was waited."""

    pauses: ClassVar[int] = 0

    def compute(self, failures: int) -> float:
        Counted.pauses += 1
        return super().compute(failures)


class Hidden(Redis):
    """Does not let its settings be seen, as managed servers do."""

    def config_get(self, *args: object, **options: object) -> dict[str, str]:  # type: ignore[override]
        raise ResponseError("unknown command")


class TestCheck:
    def test_durable_server_gets_no_warning(self, keeps: Redis, caplog: pytest.LogCaptureFixture):
        keeps.config_set("appendonly", "yes")
        keeps.config_set("appendfsync", "always")
        keeps.config_set("maxmemory-policy", "noeviction")
        check_server(keeps)
        assert caplog.text == ""

    def test_old_server_is_refused(self, redis_server: str):
        with Old.from_url(redis_server) as old, pytest.raises(UnfitServer, match="too old"):
            check_server(old)

    def test_server_without_append_only_file_gets_a_warning(
        self, keeps: Redis, caplog: pytest.LogCaptureFixture
    ):
        keeps.config_set("appendonly", "no")
        with caplog.at_level(logging.WARNING):
            check_server(keeps)
        assert "append-only" in caplog.text

    def test_server_with_fsync_every_second_gets_a_warning(
        self, keeps: Redis, caplog: pytest.LogCaptureFixture
    ):
        keeps.config_set("appendonly", "yes")
        keeps.config_set("appendfsync", "everysec")
        with caplog.at_level(logging.WARNING):
            check_server(keeps)
        assert "appendfsync" in caplog.text

    def test_server_that_evicts_keys_gets_a_warning(self, keeps: Redis, caplog: pytest.LogCaptureFixture):
        keeps.config_set("maxmemory-policy", "allkeys-lru")
        with caplog.at_level(logging.WARNING):
            check_server(keeps)
        assert "noeviction" in caplog.text

    def test_server_that_hides_its_settings_is_accepted(self, redis_server: str):
        with Hidden.from_url(redis_server) as hidden:
            check_server(hidden)

    def test_redis_that_does_not_answer_is_unavailable(self):
        with pytest.raises(Unavailable):
            check_server(connect(NOWHERE, deadline_s=0))


class TestOutages:
    @pytest.mark.parametrize(
        "call",
        [
            lambda store: store.client.get("abc"),
            lambda store: store.client.submit(a_submission()),
            lambda store: store.holder.claim("a", LEASE_S),
            lambda store: store.maintenance.sweep(),
            lambda store: store.client.events("abc"),
        ],
    )
    def test_store_is_unavailable_without_redis(self, call):
        with pytest.raises(Unavailable):
            call(JobStore(connect(NOWHERE, deadline_s=0)))

    @pytest.mark.parametrize(
        ("setting", "value", "reason"),
        [("maxmemory", "1", "full"), ("min-replicas-to-write", "1", "too few replicas")],
    )
    @every_write
    def test_redis_that_is_full_or_lacks_replicas_is_unavailable(
        self, keeps: Redis, setting: str, value: str, reason: str, write: Callable[[Redis], object]
    ):
        keeps.config_set(setting, value)
        with pytest.raises(Unavailable, match=reason):
            write(keeps)
        keeps.config_set(setting, "0")
        assert JobStore(keeps).client.list_jobs() == []

    @every_write
    def test_a_redis_that_cannot_save_is_unavailable(self, tmp_path: Path, write: Callable[[Redis], object]):
        with RedisServer(tmp_path / "redis", redis_program()) as server, Redis.from_url(server.url) as redis:
            (tmp_path / "redis" / "dump.rdb").mkdir()  # where Redis puts its snapshot
            redis.config_set("save", "3600 1")
            redis.bgsave()
            wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")
            with pytest.raises(Unavailable, match="cannot save"):
                write(redis)
            redis.config_set("save", "")  # or it refuses to stop

    def test_call_waits_for_redis_to_return(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("jobs.redis_client.ConstantBackoff", Counted)
        Counted.pauses = 0
        server = RedisServer(tmp_path, redis_program())
        server.start()
        try:
            store = JobStore(connect(server.url, deadline_s=60))
            store.client.submit(a_submission(id="abc"))
            server.kill()
            answers: list[str] = []
            thread = Thread(target=lambda: answers.append(store.client.submit(a_submission(id="def")).job.id))
            thread.start()
            wait_until(lambda: Counted.pauses)
            server.start()
            thread.join()
            assert answers == ["def"]
        finally:
            server.stop()

    def test_other_errors_are_not_hidden(self, redis: Redis):
        redis.set("longcat:job:abc", "no hash")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            JobStore(redis).client.get("abc")

    def test_error_that_only_quotes_such_a_word_is_raised_unchanged(self):
        with pytest.raises(ResponseError), redis_reached():
            raise ResponseError("Error running script: unknown key 'OOM '")
