from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.waiting import wait_until

PARENT = """
import os, signal, subprocess, sys, time
child = '''
import os, signal, sys, time
from worker.process import die_with_parent, hide_environment
hide_environment()
die_with_parent(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
print("child is protected", flush=True)
time.sleep(1000)
'''
started = subprocess.Popen([sys.executable, "-c", child, str(os.getpid()), sys.argv[1]])
print(started.pid, flush=True)
time.sleep(1000)
"""


def read_line(process: subprocess.Popen[str]) -> str:
    """Wait for the next line that a process prints, and return it."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("death_signal", [signal.SIGKILL, signal.SIGTERM])
def test_process_dies_with_its_parent(death_signal):
    command = [sys.executable, "-c", PARENT, str(int(death_signal))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        lines = {read_line(parent), read_line(parent)}
        child = psutil.Process(int(next(line for line in lines if line.isdigit())))
        assert "child is protected" in lines
        parent.kill()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_process_whose_parent_is_gone_exits_at_once():
    code = "from worker.process import die_with_parent; die_with_parent(1); print('goes on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


# Root may read everything, so as root both processes become a plain user first. That makes a process
# undumpable until it executes a program, which is undone here.
BECOME_PLAIN_USER = """
import os, pwd, time
from worker.process import PR_SET_DUMPABLE, _prctl, hide_environment
if os.getuid() == 0:
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
    _prctl(PR_SET_DUMPABLE, 1)
"""


def read_environment_of_process(protection: str) -> str:
    """Run `protection` in a process with a secret, and return its environment as its user reads it."""
    secret = f"{BECOME_PLAIN_USER}\n{protection}\nprint('ready', flush=True)\ntime.sleep(1000)"
    with subprocess.Popen(
        [sys.executable, "-c", secret],
        env={**os.environ, "SECRET": "planted"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert read_line(process) == "ready"
            reader = f"{BECOME_PLAIN_USER}\nprint(open('/proc/{process.pid}/environ').read())"
            done = subprocess.run([sys.executable, "-c", reader], capture_output=True, text=True, check=False)
            return done.stdout + done.stderr
        finally:
            process.kill()


def test_hidden_environment_cannot_be_read_by_other_processes_of_the_user():
    assert "PermissionError" in read_environment_of_process("hide_environment()")


def test_environment_can_be_read_unless_it_is_hidden():
    assert "planted" in read_environment_of_process("")


def test_program_started_by_a_hidden_process_is_not_hidden():
    # Debuggers must be able to attach to ranks.
    program = "import ctypes; print(ctypes.CDLL(None).prctl(3))"  # PR_GET_DUMPABLE
    code = (
        "import os, sys; from worker.process import hide_environment; hide_environment(); "
        f"os.execv(sys.executable, [sys.executable, '-c', {program!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
