"""The life of groups, with quick programs in place of torchrun; the real one is in `test_faults`."""

from __future__ import annotations

import os
import queue
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs.capability import Capability
from tests.waiting import wait_until
from tests.worker.examples import ORDER
from worker.messages import Message, Ready, RunJob
from worker.supervisor import group_process as group_module
from worker.supervisor.gpu_group import GpuGroup, GroupLimits
from worker.supervisor.group_process import GroupProcess, Launch, is_running

READY = Ready(
    capability=Capability(model="m", tasks=("refine",), limits={}, device="cpu", dtype="float32"), pids=()
)

# In place of `worker.rank.torchrun`: connects as rank 0 does and says that it is ready, or fails as it is
# told.
PROGRAM = f"""
import os, pathlib, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from worker.channel import call
from worker.messages import Ready
how, socket = sys.argv[-1].split("@")
if how == "dies":
    sys.exit(3)
line = call(pathlib.Path(socket)) if how != "silent" else None
if how == "ready":
    ready = Ready.model_validate_json({READY.model_dump_json()!r})
    line.send(ready.model_copy(update={{"pids": (os.getpid(),)}}))
time.sleep(1000)
"""


class Scene:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = folder / "program.py"
        program.write_text(PROGRAM)
        real = subprocess.Popen
        monkeypatch.setattr(
            group_module.subprocess,
            "Popen",
            lambda command, **given: real([sys.executable, str(program), command[-1]], **given),
        )
        self.socket = folder / "run" / "rank-0.sock"
        self.heard: queue.SimpleQueue[tuple[GroupProcess, Message | None]] = queue.SimpleQueue()
        self.groups: list[GroupProcess] = []

    def launch(self, how: str) -> Launch:
        return Launch(2, "module", f"{how}@{self.socket}", self.socket, dict(os.environ))

    def start(self, how: str) -> GroupProcess:
        group = GroupProcess(self.launch(how), self.hear)
        self.groups.append(group)
        return group

    def live(self, how: str, *, start_limit_s: float = 60.0, stall_s: float = 60.0) -> GpuGroup:
        patience = GroupLimits(start_limit_s, stall_s, stall_s, max_failed_starts=2, longest_pause_s=0.1)
        self.life = GpuGroup(self.launch(how), patience, self.hear)
        return self.life

    def hear(self, group: GroupProcess, message: Message | None) -> None:
        self.heard.put((group, message))

    def bring_up(self, life: GpuGroup) -> Ready:
        life.look(busy=False, may_start=True)
        group, ready = self.heard.get(timeout=30)
        assert group is life.group
        assert isinstance(ready, Ready)
        life.came_up(ready)
        return ready

    def trouble(self, life: GpuGroup, *, busy: bool = False) -> str:
        return wait_until(lambda: life.look(busy=busy, may_start=True))


@pytest.fixture
def scene(tmp_path, monkeypatch):
    scene = Scene(tmp_path, monkeypatch)
    yield scene
    for group in scene.groups:
        group.kill()
    if hasattr(scene, "life"):
        scene.life.end()


def test_what_rank_0_says_is_heard(scene):
    group = scene.start("ready")
    who, message = scene.heard.get(timeout=30)
    assert who is group
    assert message.capability == READY.capability


def rendezvous_folders(scene: Scene) -> list[Path]:
    return list(scene.socket.parent.glob("rendezvous-*"))


def test_each_start_has_a_rendezvous_folder_of_its_own_closed_to_others(scene):
    seen = []
    for _ in range(2):
        group = scene.start("silent")
        (folder,) = rendezvous_folders(scene)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        seen.append(folder)
        group.kill()
        assert rendezvous_folders(scene) == []
    assert seen[0] != seen[1]


def test_rendezvous_files_of_a_killed_supervisor_are_removed(scene):
    left = scene.socket.parent / "rendezvous-old"
    left.mkdir(parents=True)
    (left / "ranks").touch()
    scene.start("silent")
    assert left not in rendezvous_folders(scene)


def test_a_killed_group_is_gone_and_the_end_is_heard(scene):
    group = scene.start("ready")
    _, ready = scene.heard.get(timeout=30)
    group.knows(ready.pids)
    assert group.is_alive
    group.kill()
    assert not group.is_alive
    assert not is_running(ready.pids[0])
    assert scene.heard.get(timeout=30) == (group, None)


def test_a_group_that_never_called_can_be_killed(scene):
    group = scene.start("silent")
    group.kill()
    assert not group.is_alive


def test_a_group_is_not_alive_without_one_of_its_ranks(scene):
    group = scene.start("ready")
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    group.knows((rank.pid,))
    assert group.is_alive
    rank.kill()
    wait_until(lambda: not group.is_alive)  # dead, though nobody has asked how it ended
    rank.wait()


def test_speaking_to_a_dead_group_is_no_harm(scene):
    group = scene.start("ready")
    scene.heard.get(timeout=30)
    group.kill()
    for _ in range(3):
        group.say(RunJob(job_id="j", order=ORDER, folder=Path()))


def test_a_process_that_was_never_there_does_not_run():
    assert is_running(os.getpid())
    assert not is_running(2**22 + 1)


def test_a_life_begins_by_starting_and_is_up_when_the_group_says_so(scene):
    life = scene.live("ready")
    assert life.state(busy=False) == "starting"
    scene.bring_up(life)
    assert (life.state(busy=False), life.state(busy=True)) == ("ready", "busy")
    assert life.look(busy=False, may_start=True) is None


def test_nothing_is_started_that_may_not_be(scene):
    life = scene.live("ready")
    life.look(busy=False, may_start=False)
    assert life.group is None


def test_a_group_that_dies_at_the_start_is_trouble_and_after_a_few_times_broken(scene):
    life = scene.live("dies")
    for expected in ("starting", "broken"):
        wait_until(lambda: life.look(busy=False, may_start=True) or life.group)
        assert "died" in scene.trouble(life)
        life.end()
        assert life.state(busy=False) == expected


def test_a_group_that_comes_up_is_not_broken_any_more(scene, monkeypatch):
    life = scene.live("dies")
    for _ in range(2):
        wait_until(lambda: life.look(busy=False, may_start=True) or life.group)
        scene.trouble(life)
        life.end()
    monkeypatch.setattr(life, "_launch", scene.launch("ready"))
    wait_until(lambda: life.look(busy=False, may_start=True) or life.group)
    scene.bring_up(life)
    assert life.state(busy=False) == "ready"


def test_a_group_that_is_not_ready_in_time_is_trouble(scene):
    life = scene.live("silent", start_limit_s=0.2)
    assert "not ready within 0.2 s" in scene.trouble(life)


def test_a_rank_that_dies_is_trouble(scene):
    life = scene.live("ready")
    (pid,) = scene.bring_up(life).pids
    psutil.Process(pid).kill()
    assert "died" in scene.trouble(life)


def test_an_idle_group_may_be_silent_for_ever(scene):
    life = scene.live("ready", stall_s=0.01)
    scene.bring_up(life)
    for _ in range(20):
        assert life.look(busy=False, may_start=True) is None


def test_a_busy_group_may_not(scene):
    life = scene.live("ready", stall_s=0.3)
    scene.bring_up(life)
    life.hand_over(RunJob(job_id="j", order=ORDER, folder=Path()))
    assert "silent for more than 0.3 s" in scene.trouble(life, busy=True)


def test_the_next_group_is_another_one(scene):
    life = scene.live("ready")
    scene.bring_up(life)
    first = life.group
    life.end()
    wait_until(lambda: life.look(busy=False, may_start=True) or life.group)
    assert life.group is not first


def test_ending_a_life_without_a_group_does_nothing(scene):
    scene.live("ready").end()
