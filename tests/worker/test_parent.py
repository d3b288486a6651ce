from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from tests.waiting import wait_until
from worker.launcher import USELESS, Launcher

# Notes its start, and drains like a supervisor: it ends with status 0 when it is asked to.
GOOD = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(sys.argv[1]).open("a").write("started\\n")
time.sleep(1000)
"""
USELESS_ONE = f"import sys; sys.exit({USELESS})"


class Watched:
    """A parent in a thread, over processes that note how often they were started."""

    def __init__(self, folder: Path, *codes: str) -> None:
        self.notes = [folder / f"notes-{i}" for i in range(len(codes))]
        commands = [
            [sys.executable, "-c", code, str(note)] for code, note in zip(codes, self.notes, strict=True)
        ]
        self.parent = Launcher(len(codes), lambda index: commands[index])
        self.status: int | None = None
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def starts(self, index: int) -> int:
        return len(self.notes[index].read_text().splitlines()) if self.notes[index].exists() else 0

    def processes(self) -> list[psutil.Process]:
        marks = [str(note) for note in self.notes]
        return [child for child in psutil.Process().children() if set(marks) & set(child.cmdline())]

    def end(self) -> int | None:
        self.parent.end()
        self.thread.join(30)
        return self.status

    def _watch(self) -> None:
        self.status = self.parent.watch()


def test_it_starts_one_process_for_each_group_and_ends_them_with_itself(tmp_path):
    watched = Watched(tmp_path, GOOD, GOOD)
    wait_until(lambda: watched.starts(0) == watched.starts(1) == 1)
    assert len(watched.processes()) == 2
    assert watched.end() == 0
    assert watched.processes() == []


def test_a_supervisor_that_dies_is_started_again_and_the_other_is_left_alone(tmp_path):
    watched = Watched(tmp_path, GOOD, GOOD)
    wait_until(lambda: watched.starts(0) == watched.starts(1) == 1)
    victim = next(child for child in watched.processes() if str(watched.notes[0]) in child.cmdline())
    victim.kill()
    wait_until(lambda: watched.starts(0) == 2)
    assert watched.starts(1) == 1
    assert watched.end() == 0


def test_a_supervisor_that_can_never_work_ends_the_worker(tmp_path):
    watched = Watched(tmp_path, GOOD, USELESS_ONE)
    watched.thread.join(30)
    assert watched.status == USELESS
    assert watched.processes() == []


def test_settings_that_cannot_work_end_with_one_line_and_status_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "worker"],
        env={"PATH": "", "LONGCAT_RANKS": "3", "LONGCAT_CONTEXT_PARALLEL": "2", "LONGCAT_CHECKPOINT": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == USELESS
    assert "RANKS (3) must be a multiple of CONTEXT_PARALLEL (2)" in done.stderr
    assert "Traceback" not in done.stderr


LEASHED = """
import os, signal, subprocess, sys, time
child = '''
import os, signal, sys, time
from worker.process import end_with
end_with(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
print("on", flush=True)
time.sleep(1000)
'''
started = subprocess.Popen([sys.executable, "-c", child, str(os.getpid()), sys.argv[1]])
print(started.pid, flush=True)
time.sleep(1000)
"""


def test_a_process_on_a_leash_ends_with_its_parent():
    for sent in (signal.SIGKILL, signal.SIGTERM):
        command = [sys.executable, "-c", LEASHED, str(int(sent))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout
            said = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
            child = psutil.Process(int(next(word for word in said if word.isdigit())))
            assert "on" in said
            parent.kill()
        wait_until(lambda child=child: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_process_whose_parent_is_gone_already_does_not_begin():
    code = "from worker.process import end_with; end_with(1); print('begun')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
