"""A program started with `dies_with_parent` ends when the process that started it ends."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil

from stack.die_with_parent import dies_with_parent
from tests.waiting import wait_until

PARENT = """
import subprocess, sys, time
from stack.die_with_parent import dies_with_parent
child = subprocess.Popen(dies_with_parent(["sleep", "1000"]))
print(child.pid, flush=True)
time.sleep(1000)
"""


def test_program_ends_when_its_parent_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: child.name() == "sleep")
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_program_does_not_start_when_its_parent_has_ended_already():
    command = dies_with_parent(["echo", "started"])
    with_another_parent = [*command[:3], "1", *command[4:]]
    done = subprocess.run(with_another_parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_program_receives_its_arguments_unchanged():
    done = subprocess.run(
        dies_with_parent(["echo", "a b", "--c"]), capture_output=True, text=True, check=True
    )
    assert done.stdout == "a b --c\n"


def test_signals_reach_the_program():
    with subprocess.Popen(dies_with_parent(["sleep", "1000"])) as process:
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
