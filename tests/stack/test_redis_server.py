"""The private Redis: which one is taken, how it is set up, and that it ends with us."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from stack.errors import StackError
from stack.redis_server import Binary, RedisServer, find_binary, open_redis, version
from tests.rights import open_to_others
from tests.waiting import wait_until


def fake_binary(folder: Path, name: str, shown: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{shown}'\n")
    path.chmod(0o755)
    return path


def test_a_given_url_wins_over_everything(tmp_path):
    with open_redis(tmp_path / "unused", "redis://elsewhere:1234/5") as url:
        assert url == "redis://elsewhere:1234/5"
    assert not (tmp_path / "unused").exists()


def test_redis_is_taken_before_valkey(tmp_path, monkeypatch):
    redis = fake_binary(tmp_path, "redis-server", "Redis server v=6.2.0 sha=0")
    fake_binary(tmp_path, "valkey-server", "Valkey server v=8.0.1 sha=0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == Binary(str(redis))


@pytest.mark.parametrize("shown", ["Redis server v=6.0.16 sha=0", "Redis server v=5.0.7 sha=0", "nothing"])
def test_a_redis_too_old_is_passed_over_for_valkey(tmp_path, monkeypatch, shown):
    fake_binary(tmp_path, "redis-server", shown)
    valkey = fake_binary(tmp_path, "valkey-server", "Valkey server v=7.2.5 sha=0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == Binary(str(valkey))


def test_without_one_on_the_path_the_shipped_one_is_for_trying(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = find_binary()
    assert binary.for_trying
    assert version(binary.path) >= (6, 2)


def test_the_shipped_one_runs_and_says_what_it_is_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    with open_redis(tmp_path / "data") as url, Redis.from_url(url) as client:
        assert client.ping()
    assert "only for trying out" in caplog.text


def test_without_any_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(StackError, match="LONGCAT_REDIS_URL"):
        find_binary()


def test_it_keeps_every_job_and_evicts_none(tmp_path):
    with open_redis(tmp_path / "data") as url, Redis.from_url(url) as client:
        wanted = {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "port": "0",
        }
        # One by one: Redis 6.2 answers no more than one at a time.
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_nobody_else_may_open_its_files(tmp_path):
    folder = tmp_path / "data" / "redis"
    with open_redis(folder) as url, Redis.from_url(url) as client:
        client.set("key", "secret")
        client.bgrewriteaof()
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
        assert list(folder.glob("appendonly*"))
        assert open_to_others(folder.parent) == []


def test_files_that_an_earlier_release_left_open_are_closed(tmp_path):
    folder = tmp_path / "redis"
    folder.mkdir(mode=0o755)
    (folder / "redis.log").touch(mode=0o644)
    (folder / "appendonlydir").mkdir(mode=0o755)
    with open_redis(folder):
        assert open_to_others(folder) == []


def test_what_was_written_is_there_after_a_stop(tmp_path):
    for expected in (None, b"kept"):
        with open_redis(tmp_path / "data") as url, Redis.from_url(url) as client:
            assert client.get("key") == expected
            client.set("key", "kept")


def test_it_comes_back_under_the_same_url_with_everything_after_a_crash(tmp_path):
    server = RedisServer(tmp_path / "data", find_binary())
    for expected in (None, b"kept"):
        server.start()
        with Redis.from_url(server.url) as client:
            assert client.get("key") == expected
            client.set("key", "kept")
        server.kill()
    server.stop()


def test_a_second_one_in_the_same_folder_is_refused(tmp_path):
    with open_redis(tmp_path / "data"), pytest.raises(StackError, match="in use"):
        RedisServer(tmp_path / "data", find_binary())


def test_the_folder_is_free_again_after_a_stop(tmp_path):
    for _ in range(2):
        with open_redis(tmp_path / "data") as url, Redis.from_url(url) as client:
            assert client.ping()


def test_a_folder_too_deep_for_a_socket_gets_one_elsewhere(tmp_path):
    deep = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 6)
    with open_redis(deep) as url, Redis.from_url(url) as client:
        assert client.ping()
        private = Path(url.removeprefix("unix://")).parent
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not private.exists()


def test_one_that_cannot_start_names_its_log(tmp_path):
    broken = fake_binary(tmp_path, "redis-server", "Redis server v=7.0.0 sha=0")
    with pytest.raises(StackError, match=r"redis\.log"):
        RedisServer(tmp_path / "data", Binary(str(broken))).start()


HOLDER = """
import pathlib, sys, time
from stack.redis_server import open_redis
with open_redis(pathlib.Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(1000)
"""


def test_it_ends_with_a_killed_owner(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "data")]
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
