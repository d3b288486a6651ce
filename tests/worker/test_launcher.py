from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until
from worker.launcher import EXIT_UNUSABLE, Launcher, supervisor_command
from worker.weight_memory import create_weight_memory

# Records its start and drains like a supervisor: it ends with status 0 on SIGTERM.
GOOD = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(sys.argv[1]).open("a").write("started\\n")
time.sleep(1000)
"""
UNUSABLE = f"import sys; sys.exit({EXIT_UNUSABLE})"


class RunningLauncher:
    """A launcher in a thread, whose processes record how often they were started."""

    def __init__(self, folder: Path, *codes: str) -> None:
        self.records = [folder / f"starts-{i}" for i in range(len(codes))]
        commands = [
            [sys.executable, "-c", code, str(record)]
            for code, record in zip(codes, self.records, strict=True)
        ]
        self.launcher = Launcher(len(codes), lambda index: commands[index], stuck_s=60.0)
        self.status: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def starts(self, index: int) -> int:
        return len(self.records[index].read_text().splitlines()) if self.records[index].exists() else 0

    def processes(self) -> list[psutil.Process]:
        marks = [str(record) for record in self.records]
        return [child for child in psutil.Process().children() if set(marks) & set(child.cmdline())]

    def stop(self) -> int | None:
        self.launcher.stop()
        self.thread.join(30)
        return self.status

    def _run(self) -> None:
        self.status = self.launcher.run()


def test_launcher_starts_one_process_per_group_and_stops_them(tmp_path):
    launcher = RunningLauncher(tmp_path, GOOD, GOOD)
    wait_until(lambda: launcher.starts(0) == launcher.starts(1) == 1)
    assert len(launcher.processes()) == 2
    assert launcher.stop() == 0
    assert launcher.processes() == []


def test_dead_supervisor_is_started_again_and_the_other_one_keeps_running(tmp_path):
    launcher = RunningLauncher(tmp_path, GOOD, GOOD)
    wait_until(lambda: launcher.starts(0) == launcher.starts(1) == 1)
    victim = next(child for child in launcher.processes() if str(launcher.records[0]) in child.cmdline())
    victim.kill()
    wait_until(lambda: launcher.starts(0) == 2)
    assert launcher.starts(1) == 1
    assert launcher.stop() == 0


def test_shared_memory_is_open_in_every_supervisor(tmp_path):
    memory = create_weight_memory()
    assert memory is not None
    os.write(memory, b"kept")
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_bytes(os.pread(int(sys.argv[2]), 9, 0))"
    files = [tmp_path / "0", tmp_path / "1"]
    launcher = Launcher(
        2, lambda i: [sys.executable, "-c", code, str(files[i]), str(memory)], 60.0, open_files=[memory]
    )
    thread = threading.Thread(target=launcher.run)
    thread.start()
    wait_until(lambda: [file.exists() and file.read_bytes() for file in files] == [b"kept"] * 2)
    launcher.stop()
    thread.join(30)
    os.close(memory)


def test_command_of_a_supervisor_names_the_shared_memory():
    assert supervisor_command(7, 1)[-4:] == ["--parent", str(os.getpid()), "--weight-memory", "7"]
    assert supervisor_command(None, 1)[-2:] == ["--parent", str(os.getpid())]


def test_worker_does_without_shared_memory_that_the_system_refuses(monkeypatch, caplog):
    def refuse(name):
        raise PermissionError("refused")

    monkeypatch.setattr("os.memfd_create", refuse)
    assert create_weight_memory() is None
    assert "each change of LoRA reads files: refused" in caplog.text


def test_supervisor_with_unusable_settings_ends_the_worker(tmp_path):
    launcher = RunningLauncher(tmp_path, GOOD, UNUSABLE)
    launcher.thread.join(30)
    assert launcher.status == EXIT_UNUSABLE
    assert launcher.processes() == []


@pytest.mark.parametrize("command", ["worker", "worker.check"])
def test_invalid_settings_end_the_worker_with_one_line_and_status_2(command):
    done = subprocess.run(
        [sys.executable, "-m", command],
        env={"PATH": "", "LONGCAT_RANKS": "3", "LONGCAT_CONTEXT_PARALLEL": "2", "LONGCAT_CHECKPOINT": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == EXIT_UNUSABLE
    assert done.stderr == "error: RANKS (3) must be a multiple of CONTEXT_PARALLEL (2)\n"
