"""The command line of the stack: one clear line for what is wrong, and an exit code that tells."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from stack.__main__ import listen
from tests.servers import free_port
from tests.waiting import wait_until


@pytest.fixture
def stack(tmp_path):
    """Runs `python -m stack` with settings."""

    def stack(*arguments, **settings):
        environment = {f"LONGCAT_{name.upper()}": str(value) for name, value in settings.items()}
        return subprocess.run(
            [sys.executable, "-m", "stack", *arguments],
            env={**os.environ, "LONGCAT_DATA_DIR": str(tmp_path / "data"), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return stack


def test_a_port_in_use_is_one_line(stack):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = stack("serve", port=port)
    assert done.returncode == 1
    assert (
        done.stderr == f"stack: 127.0.0.1:{port} cannot be used (Address already in use); set LONGCAT_PORT\n"
    )


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_missing_checkpoint_is_one_line(stack, tmp_path, command):
    done = stack(command, checkpoint=tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr == f"stack: LONGCAT_CHECKPOINT names no folder: {tmp_path / 'nowhere'}\n"


def test_a_setting_that_makes_no_sense_is_one_line(stack):
    done = stack("serve", port="http")
    assert done.returncode == 2
    assert done.stderr.startswith("stack: LONGCAT_PORT: ")
    assert done.stderr.count("\n") == 1


def test_without_a_command_it_says_which_there_are(stack):
    done = stack()
    assert done.returncode == 2
    assert "{serve,demo}" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end_while_it_comes_up_it_ends_cleanly(tmp_path, how):
    environment = {"LONGCAT_DATA_DIR": str(tmp_path / "data"), "LONGCAT_CHECKPOINT": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "stack", "serve"],
        env={**os.environ, **environment, "LONGCAT_PORT": str(free_port())},
        stdout=subprocess.DEVNULL,
    ) as process:
        wait_until((tmp_path / "data" / "redis" / "redis.sock").exists)
        process.send_signal(how)
    assert process.returncode == 0
    assert not (tmp_path / "data" / "redis" / "redis.sock").exists()


class SignalsAtItsEnd:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_what_is_asked_for_in_a_finaliser_is_not_forgotten():
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    handlers = {name: signal.getsignal(name) for name in signals}
    listen()
    try:
        SignalsAtItsEnd()
        with pytest.raises(KeyboardInterrupt):
            wait_until(lambda: False)
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
