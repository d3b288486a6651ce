"""Programs beside us: their lines arrive, they end in time, and never stay behind."""

from __future__ import annotations

import os
import signal
import sys

import psutil
import pytest

from stack.processes import Program, running
from tests.waiting import wait_until


@pytest.fixture
def written():
    return []


@pytest.fixture
def run(tmp_path, written):
    """Runs a piece of code as the module of a program."""

    def run(code, **options):
        (tmp_path / "piece.py").write_text(code)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
        return running(Program("piece", "piece", **options), environment, lambda *line: written.append(line))

    return run


STAYS = "import time\nprint('up')\ntime.sleep(1000)\n"
STAYS_ALTHOUGH_ASKED = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STAYS


def test_its_lines_come_with_its_name(run, written):
    with run("print('one')\nprint('two')") as process:
        process.wait()
    assert written == [("piece", "one"), ("piece", "two")]


def test_what_it_says_about_its_end_comes_too(run, written):
    with run("raise SystemExit('no room')") as process:
        assert process.wait() == 1
    assert written == [("piece", "no room")]


def test_bytes_that_are_no_text_do_not_stop_the_lines(run, written):
    with run("import sys\nsys.stdout.buffer.write(b'\\xff\\n')\nprint('after')") as process:
        process.wait()
    assert written[1] == ("piece", "after")


def test_arguments_arrive(run, written):
    with run("import sys\nprint(sys.argv[1:])", arguments=("a b", "--c")) as process:
        process.wait()
    assert written == [("piece", "['a b', '--c']")]


def test_it_is_asked_to_end(run, written):
    with run(STAYS) as process:
        wait_until(lambda: written)
    assert process.returncode == -signal.SIGTERM


def test_it_is_killed_if_it_does_not(run, written):
    with run(STAYS_ALTHOUGH_ASKED, stop_timeout_s=0.2) as process:
        wait_until(lambda: written)
    assert process.returncode == -signal.SIGKILL


def test_it_ends_when_we_fail(run, written):
    with pytest.raises(TimeoutError), run(STAYS) as process:
        wait_until(lambda: False, timeout_s=0)
    assert process.returncode == -signal.SIGTERM


def test_ctrl_c_in_our_terminal_is_not_for_it(run, written):
    with run(STAYS) as process:
        wait_until(lambda: written)
        assert os.getpgid(process.pid) != os.getpgid(0)


def test_it_runs_in_the_python_that_we_run_in(run, written):
    with run(STAYS) as process:
        wait_until(lambda: written)
        assert psutil.Process(process.pid).cmdline()[0] == sys.executable
