"""The command line of the stack: one line on standard error for each mistake, and its exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass

import pytest

from stack.__main__ import interrupt_on_signals, main
from tests.servers import free_port
from tests.waiting import wait_until

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@dataclass(frozen=True)
class Finished:
    """The exit code of a command and what it wrote to standard error."""

    code: int
    err: str


@pytest.fixture
def signal_handlers():
    """Restore the handlers of the signals that the stack handles."""
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def run_stack(tmp_path, monkeypatch, capsys, signal_handlers):
    """Return a function that runs `python -m stack` in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGCAT_DATA_DIR", str(tmp_path / "data"))

    def run_stack(*arguments, **settings):
        for name, value in settings.items():
            monkeypatch.setenv(f"LONGCAT_{name.upper()}", str(value))
        try:
            code = main(arguments)
        except SystemExit as invalid:
            code = int(invalid.code or 0)
        return Finished(code, capsys.readouterr().err)

    return run_stack


def test_port_in_use_is_reported_in_one_line(run_stack):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_stack("serve", port=port)
    assert done.code == 1
    assert done.err == f"stack: 127.0.0.1:{port} cannot be used (Address already in use); set LONGCAT_PORT\n"


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_missing_checkpoint_is_reported_in_one_line(run_stack, tmp_path, command):
    done = run_stack(command, checkpoint=tmp_path / "nowhere")
    assert done.code == 1
    assert done.err == f"stack: LONGCAT_CHECKPOINT is not a folder: {tmp_path / 'nowhere'}\n"


def test_unknown_redis_server_is_reported_in_one_line(run_stack, tmp_path):
    done = run_stack("serve", port=free_port(), redis_server=tmp_path / "nowhere")
    assert done.code == 1
    assert done.err.startswith(f"stack: LONGCAT_REDIS_SERVER={tmp_path / 'nowhere'} is not a Redis or Valkey")
    assert done.err.count("\n") == 1


def test_output_folder_that_cannot_be_written_is_reported_before_anything_starts(run_stack, tmp_path):
    (tmp_path / "file").touch()
    done = run_stack("demo", "--out", "file/out")
    assert done.code == 1
    assert done.err == "stack: cannot write to file/out: Not a directory\n"
    assert not (tmp_path / "data").exists()


def test_invalid_setting_is_reported_in_one_line(run_stack):
    done = run_stack("serve", port="http")
    assert done.code == 2
    assert done.err == "error: LONGCAT_PORT is 'http': must be an integer\n"


def test_missing_command_lists_the_commands(run_stack):
    done = run_stack()
    assert done.code == 2
    assert "{serve,demo}" in done.err


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_during_startup_stops_everything(tmp_path, stop_signal):
    environment = {"LONGCAT_DATA_DIR": str(tmp_path / "data"), "LONGCAT_CHECKPOINT": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "stack", "serve"],
        env={**os.environ, **environment, "LONGCAT_PORT": str(free_port())},
        stdout=subprocess.DEVNULL,
    ) as process:
        wait_until((tmp_path / "data" / "redis" / "redis.sock").exists)
        process.send_signal(stop_signal)
    assert process.returncode == 0
    assert not (tmp_path / "data" / "redis" / "redis.sock").exists()


class SignalsInFinalizer:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_signal_during_a_finalizer_is_not_lost(signal_handlers):
    interrupt_on_signals()
    SignalsInFinalizer()
    with pytest.raises(KeyboardInterrupt):
        wait_until(lambda: False)
