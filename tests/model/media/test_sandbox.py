"""What a file can do that has taken control of its decoder: nothing, and not for long."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from model.media.errors import SandboxUnavailable, UnusableMedia
from model.media.sandbox import Sandbox
from tests.model.media.probes import ATTACKS
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
PROBES = "tests.model.media.probes"


@pytest.fixture(scope="module")
def probing():
    with Sandbox(memory_bytes=64 << 20, decoders=PROBES) as sandbox:
        yield sandbox


@pytest.fixture
def fresh():
    with Sandbox(max_decodes=2, decoders=PROBES) as sandbox:
        yield sandbox


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    return path


def decode(sandbox, decoder, file, timeout_s, **arguments):
    with sandbox.decode(decoder, file, timeout_s, arguments) as decoded:
        return decoded.facts


@pytest.fixture
def probe(probing, file):
    def run(decoder, timeout_s=20.0, sandbox=probing, **arguments):
        return decode(sandbox, decoder, file, timeout_s, **arguments)

    return run


def fork_server(sandbox):
    (process,) = [
        child
        for child in psutil.Process().children()
        if child.pid == sandbox._server._process.pid  # the owner keeps it to itself
    ]
    return process


@pytest.mark.skipif(platform.machine() != "x86_64", reason="some attacks name system calls by number")
@pytest.mark.parametrize("name", ATTACKS)
def test_decoder_cannot(probe, name):
    assert probe("attack", name=name) == {"errno": errno.EPERM}


def test_decoder_inherits_no_environment_of_its_owner_and_no_descriptors(probe, monkeypatch, fresh):
    monkeypatch.setenv("LONGCAT_API_KEY", "secret")
    fresh.start()
    server = fork_server(fresh)
    assert set(server.environ()) == {"OPENBLAS_NUM_THREADS", "PYTHONPATH"}
    inherited = probe("inherited", sandbox=fresh)
    given = {"OPENBLAS_NUM_THREADS", "PYTHONPATH"}
    assert given <= set(inherited["environment"]) <= {*given, "LC_CTYPE"}  # Python sets it
    assert len(inherited["descriptors"]) == 5  # three times /dev/null, the file and the reply


def test_decoder_finds_packages_where_its_owner_does(tmp_path, monkeypatch, file):
    (tmp_path / "decoders_elsewhere.py").write_text(f"from {PROBES} import DECODERS")
    monkeypatch.syspath_prepend(tmp_path)
    with Sandbox(decoders="decoders_elsewhere") as sandbox:
        assert decode(sandbox, "wait", file, 20.0, seconds=0)["content"] == "content"


def test_decoder_that_hangs_is_killed(probe):
    with pytest.raises(UnusableMedia, match=r"longer than 0\.2 s"):
        probe("hang", timeout_s=0.2)


def test_decoder_that_computes_without_end_is_killed(probe):
    with pytest.raises(UnusableMedia, match=r"longer than 0\.2 s"):
        probe("compute", timeout_s=0.2)


def test_decoder_has_the_memory_that_it_was_given_and_no_more(probe):
    assert probe("allocate", size_bytes=32 << 20) == {"last": 0}
    with pytest.raises(UnusableMedia, match="needs more than 64 MiB"):
        probe("allocate", size_bytes=65 << 20)


def test_decoder_that_crashes_harms_nobody(probe, probing):
    pid = fork_server(probing).pid
    with pytest.raises(UnusableMedia, match="crash"):
        probe("crash")
    assert probe("wait", seconds=0)["content"] == "content"
    assert fork_server(probing).pid == pid


@pytest.mark.parametrize("content", [b"", b"x" * 49])
def test_data_of_another_length_than_announced_is_refused(probing, file, tmp_path, content):
    arguments = {"facts": {}, "size_bytes": 50, "real_bytes": len(content)}
    with pytest.raises(UnusableMedia), probing.decode("lie", file, 20.0, arguments) as decoded:
        decoded.save(tmp_path / "saved", 1 << 20)
    with pytest.raises(UnusableMedia), probing.decode("lie", file, 20.0, arguments) as decoded:
        decoded.fill(memoryview(bytearray(60)))


def test_no_more_data_is_written_than_announced(probing, file, tmp_path):
    arguments = {"facts": {}, "size_bytes": 50, "real_bytes": 5000}
    with probing.decode("lie", file, 20.0, arguments) as decoded:
        decoded.save(tmp_path / "saved", 1 << 20)
    assert (tmp_path / "saved").stat().st_size == 50


def test_more_data_than_allowed_is_not_written(probing, file, tmp_path):
    arguments = {"facts": {}, "size_bytes": 101, "real_bytes": 101}
    with pytest.raises(UnusableMedia), probing.decode("lie", file, 20.0, arguments) as decoded:
        decoded.save(tmp_path / "saved", 100)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("facts", [7, "text", [], None, [[]]])
def test_reply_that_is_no_object_is_refused(probe, facts):
    with pytest.raises(UnusableMedia, match="cannot be decoded"):
        probe("lie", facts=facts, size_bytes=0, real_bytes=0)


def test_reply_that_cannot_be_parsed_is_refused(probe):
    with pytest.raises(UnusableMedia, match="cannot be decoded"):
        probe("nest")


def test_decodes_wait_for_a_slot_and_not_for_ever(file):
    with Sandbox(max_decodes=1, max_wait_s=0.05, decoders=PROBES) as sandbox, ThreadPoolExecutor(1) as pool:
        sandbox.start()
        hanging = pool.submit(decode, sandbox, "hang", file, 60.0)
        (child,) = wait_until(fork_server(sandbox).children)
        with pytest.raises(SandboxUnavailable, match="waiting"):
            decode(sandbox, "wait", file, 20.0, seconds=0)
        child.kill()
        with pytest.raises((UnusableMedia, SandboxUnavailable)):  # the latter if it was not confined yet
            hanging.result()
        assert decode(sandbox, "wait", file, 20.0, seconds=0)


def test_decodes_run_at_the_same_time_up_to_the_bound(fresh, tmp_path):
    fresh.start()
    file = tmp_path / "empty"
    file.touch()
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(decode, fresh, "wait_for_content", file, 60.0) for _ in range(4)]
        wait_until(lambda: len(fork_server(fresh).children()) == 2)
        file.write_text("content")
    decodes = [one.result() for one in running]
    assert len({one["pid"] for one in decodes}) == 4
    # A process may still be exiting after its reply, so processes are not counted.
    at_once = [sum(one["began"] <= other["began"] < one["ended"] for one in decodes) for other in decodes]
    assert max(at_once) <= 2


class TestTheForkServer:
    def test_is_started_again_after_it_was_killed(self, fresh, file):
        assert decode(fresh, "wait", file, 20.0, seconds=0)
        fork_server(fresh).kill()
        assert decode(fresh, "wait", file, 20.0, seconds=0)

    def test_killed_during_a_decode_costs_nothing_but_time(self, fresh, file):
        decode(fresh, "wait", file, 20.0, seconds=0)  # the server has started, and its probes are imported
        server = fork_server(fresh)
        with ThreadPoolExecutor(1) as pool:
            wait_until(lambda: not server.children())
            now = time.monotonic()
            running = pool.submit(decode, fresh, "wait_in_old_server", file, 60.0, started_before=now)
            wait_until(server.children)
            (child,) = server.children()
            server.kill()
            assert running.result()["pid"] != child.pid
            wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)

    def test_that_hangs_is_replaced(self, fresh, file, monkeypatch):
        monkeypatch.setattr("model.media.sandbox._GRACE_S", 0.1)
        fresh.start()
        server = fork_server(fresh)
        server.suspend()
        with pytest.raises(SandboxUnavailable, match="hangs"):
            decode(fresh, "wait", file, 0.1, seconds=0)
        assert not server.is_running()
        assert decode(fresh, "wait", file, 20.0, seconds=0)

    def test_outlives_the_thread_that_started_it(self, fresh, file):
        starting = threading.Thread(target=fresh.start)
        starting.start()
        starting.join()
        pid = fork_server(fresh).pid
        assert decode(fresh, "wait", file, 20.0, seconds=0)
        assert fork_server(fresh).pid == pid

    def test_ends_with_its_sandbox(self, file):
        with Sandbox(decoders=PROBES) as sandbox:
            sandbox.start()
            server = fork_server(sandbox)
        assert not server.is_running()

    def test_ends_with_a_sandbox_that_nobody_closed(self):
        sandbox = Sandbox(decoders=PROBES)
        sandbox.start()
        server = fork_server(sandbox)
        del sandbox
        assert not server.is_running()

    def test_and_its_children_end_with_an_owner_that_was_killed(self):
        command = [sys.executable, "-m", "tests.model.media.owner"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout
            left = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
            os.kill(owner.pid, signal.SIGKILL)
        assert len(left) == 2
        wait_until(lambda: not any(process.is_running() for process in left))

    def test_that_died_before_its_child_ran_leaves_no_child(self):
        code = "from model.media.confinement import die_with_parent; die_with_parent(1); print('goes on')"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert "ProcessLookupError: the parent process has ended" in done.stderr
        assert done.stdout == ""

    def test_that_does_not_start_is_an_error_of_ours(self):
        with Sandbox(decoders="tests.no_such_module") as sandbox, pytest.raises(SandboxUnavailable):
            sandbox.start()


class TestWithoutFilter:
    @pytest.fixture
    def unfiltered(self):
        with Sandbox(memory_bytes=64 << 20, decoders="tests.model.media.unfiltered") as sandbox:
            yield sandbox

    def test_operator_is_warned_and_limits_hold(self, unfiltered, file, caplog):
        with pytest.raises(UnusableMedia, match="needs more than 64 MiB"):
            decode(unfiltered, "allocate", file, 20.0, size_bytes=65 << 20)
        with pytest.raises(UnusableMedia, match="longer than"):
            decode(unfiltered, "compute", file, 0.2)
        for name in ("read a file", "write a file", "connect to the network"):
            assert decode(unfiltered, "attack", file, 20.0, name=name) == {"errno": errno.EMFILE}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "cannot be filtered" in caplog.text
