"""Child programs: their output is forwarded, and they are stopped in time."""

from __future__ import annotations

import os
import signal
import sys

import psutil
import pytest

from stack.processes import Program, running_program
from tests.waiting import wait_until


@pytest.fixture
def written():
    return []


@pytest.fixture
def run(tmp_path, written):
    """Run Python source code as the module of a program."""

    def run(code, **options):
        (tmp_path / "source.py").write_text(code)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
        program = Program("source", "source", **options)
        return running_program(program, environment, lambda *line: written.append(line))

    return run


RUNS = "import time\nprint('up')\ntime.sleep(1000)\n"
IGNORES_SIGTERM = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + RUNS


def test_output_is_forwarded_with_the_name_of_the_program(run, written):
    with run("print('one')\nprint('two')") as process:
        process.wait()
    assert written == [("source", "one"), ("source", "two")]


def test_standard_error_is_forwarded(run, written):
    with run("raise SystemExit('disk full')") as process:
        assert process.wait() == 1
    assert written == [("source", "disk full")]


def test_invalid_utf8_does_not_stop_the_forwarding(run, written):
    with run("import sys\nsys.stdout.buffer.write(b'\\xff\\n')\nprint('after')") as process:
        process.wait()
    assert written[1] == ("source", "after")


def test_program_receives_its_arguments(run, written):
    with run("import sys\nprint(sys.argv[1:])", arguments=("a b", "--c")) as process:
        process.wait()
    assert written == [("source", "['a b', '--c']")]


def test_program_is_stopped_with_sigterm(run, written):
    with run(RUNS) as process:
        wait_until(lambda: written)
    assert process.returncode == -signal.SIGTERM


def test_program_that_ignores_sigterm_is_killed(run, written):
    with run(IGNORES_SIGTERM, stop_timeout_s=0.2) as process:
        wait_until(lambda: written)
    assert process.returncode == -signal.SIGKILL


def test_program_is_stopped_after_an_exception(run, written):
    with pytest.raises(TimeoutError), run(RUNS) as process:
        wait_until(lambda: False, timeout_s=0)
    assert process.returncode == -signal.SIGTERM


def test_ctrl_c_in_the_terminal_does_not_reach_the_program(run, written):
    with run(RUNS) as process:
        wait_until(lambda: written)
        assert os.getpgid(process.pid) != os.getpgid(0)


def test_program_runs_in_the_same_python(run, written):
    with run(RUNS) as process:
        wait_until(lambda: written)
        assert psutil.Process(process.pid).cmdline()[0] == sys.executable


def test_program_with_a_niceness_yields_the_processor(run, written):
    with run(RUNS, niceness=5) as process:
        wait_until(lambda: written)
        assert psutil.Process(process.pid).nice() == min(psutil.Process().nice() + 5, 19)
