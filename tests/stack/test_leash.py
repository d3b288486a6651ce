"""A leashed program ends with whoever started it."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil

from stack.leash import leashed
from tests.waiting import wait_until

PARENT = """
import subprocess, sys, time
from stack.leash import leashed
child = subprocess.Popen(leashed(["sleep", "1000"]))
print(child.pid, flush=True)
time.sleep(1000)
"""


def test_it_dies_when_its_parent_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: child.name() == "sleep")
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_it_does_not_start_for_a_parent_that_is_dead_already():
    command = leashed(["echo", "started"])
    somebody_else = [*command[:3], "1", *command[4:]]
    done = subprocess.run(somebody_else, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_it_becomes_the_program_with_all_its_arguments():
    done = subprocess.run(leashed(["echo", "a b", "--c"]), capture_output=True, text=True, check=True)
    assert done.stdout == "a b --c\n"


def test_its_signals_reach_the_program_itself():
    with subprocess.Popen(leashed(["sleep", "1000"])) as process:
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
