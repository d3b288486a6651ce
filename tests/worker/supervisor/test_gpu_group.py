from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until
from tests.worker.examples import ORDER
from tests.worker.supervisor.group_processes import READY, START_TIMEOUT_S, ProgramStarter
from worker.messages import Ready, RunJob
from worker.supervisor.gpu_group import GpuGroup, GroupLimits
from worker.supervisor.group_process import GroupProcess
from worker.supervisor.states import GpuGroupState, IllegalTransition


class Scene:
    """A group whose programs are ready, die or stay silent, as `how` says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.starter = ProgramStarter(folder, monkeypatch)
        self.how = "ready"

    def group(self, *, start_limit_s: float = START_TIMEOUT_S, stall_s: float = 60.0) -> GpuGroup:
        limits = GroupLimits(start_limit_s, stall_s, stall_s, max_failed_starts=2, longest_pause_s=0.1)
        return GpuGroup(lambda: self.starter.start(self.how), limits)

    def start(self, group: GpuGroup) -> None:
        wait_until(lambda: group.check(busy=False, may_start=True) or group.process)

    def bring_up(self, group: GpuGroup) -> Ready:
        self.start(group)
        process, ready = self.starter.messages.get(timeout=START_TIMEOUT_S)
        assert process is group.process
        assert isinstance(ready, Ready)
        group.on_ready(ready)
        return ready

    def failure(self, group: GpuGroup, *, busy: bool = False) -> str:
        return wait_until(lambda: group.check(busy=busy, may_start=True))


@pytest.fixture
def scene(tmp_path, monkeypatch):
    scene = Scene(tmp_path, monkeypatch)
    yield scene
    scene.starter.kill_all()


def test_group_is_ready_once_rank_0_says_so(scene):
    group = scene.group()
    assert (group.state, group.published_state(busy=False)) == (GpuGroupState.DOWN, "starting")
    scene.start(group)
    assert group.state is GpuGroupState.STARTING
    scene.bring_up(group)
    assert (group.state, group.published_state(busy=False)) == (GpuGroupState.READY, "ready")
    assert group.published_state(busy=True) == "busy"
    assert group.capability == READY.capability
    assert group.check(busy=False, may_start=True) is None


def test_second_ready_message_is_illegal(scene):
    group = scene.group()
    ready = scene.bring_up(group)
    with pytest.raises(IllegalTransition):
        group.on_ready(ready)


def test_group_is_not_started_if_it_may_not(scene):
    group = scene.group()
    group.check(busy=False, may_start=False)
    assert (group.process, group.state) == (None, GpuGroupState.DOWN)


def test_group_is_broken_after_several_failed_starts(scene):
    group, scene.how = scene.group(), "dies"
    for published in ("starting", "broken"):
        scene.start(group)
        assert "died" in scene.failure(group)
        group.stop()
        assert group.state is GpuGroupState.BACKING_OFF
        assert group.published_state(busy=False) == published


def test_failed_start_is_followed_by_a_pause(tmp_path, monkeypatch):
    starter, now = ProgramStarter(tmp_path, monkeypatch), [0.0]
    limits = GroupLimits(60, 60, 60, max_failed_starts=3, longest_pause_s=60)
    group = GpuGroup(lambda: starter.start("silent"), limits, clock=lambda: now[0])
    group.check(busy=False, may_start=True)
    group.stop()
    now[0] = 0.9
    group.check(busy=False, may_start=True)
    assert group.process is None
    now[0] = 1.1
    group.check(busy=False, may_start=True)
    assert group.process is not None
    group.stop()


def test_group_whose_processes_cannot_be_started_is_started_again_after_a_pause(tmp_path, monkeypatch):
    starter, now, folder = ProgramStarter(tmp_path, monkeypatch), [0.0], tmp_path / "rendezvous"

    def start() -> GroupProcess:
        folder.mkdir()
        return starter.start("silent")

    folder.touch()
    group = GpuGroup(start, GroupLimits(60, 60, 60, max_failed_starts=1, longest_pause_s=60), lambda: now[0])
    failure = group.check(busy=False, may_start=True)
    assert failure == f"it cannot be started: [Errno 17] File exists: '{folder}'"
    assert (group.state, group.published_state(busy=False)) == (GpuGroupState.BACKING_OFF, "broken")
    folder.unlink()
    assert group.check(busy=False, may_start=True) is None
    assert group.process is None
    now[0] = 1.1
    assert group.check(busy=False, may_start=True) is None
    assert group.process is not None
    group.stop()


def test_group_that_becomes_ready_is_not_broken_any_more(scene):
    group, scene.how = scene.group(), "dies"
    for _ in range(2):
        scene.start(group)
        scene.failure(group)
        group.stop()
    scene.how = "ready"
    scene.bring_up(group)
    assert group.published_state(busy=False) == "ready"


def test_group_that_is_not_ready_in_time_fails(scene):
    group, scene.how = scene.group(start_limit_s=0.2), "silent"
    scene.start(group)
    assert "not ready within 0.2 s" in scene.failure(group)


def test_dead_rank_fails_the_group(scene):
    group = scene.group()
    (pid,) = scene.bring_up(group).pids
    psutil.Process(pid).kill()
    assert "died" in scene.failure(group)


def test_idle_group_may_be_silent(scene):
    group = scene.group(stall_s=0.01)
    scene.bring_up(group)
    for _ in range(20):
        assert group.check(busy=False, may_start=True) is None


def test_busy_group_that_is_silent_fails(scene):
    group = scene.group(stall_s=0.3)
    scene.bring_up(group)
    group.start_job(RunJob(job_id="j", order=ORDER, folder=Path()))
    assert "sent nothing for more than 0.3 s" in scene.failure(group, busy=True)


def test_progress_keeps_a_busy_group_from_failing(tmp_path, monkeypatch):
    starter, now = ProgramStarter(tmp_path, monkeypatch), [0.0]
    limits = GroupLimits(60, 10, 10, max_failed_starts=3, longest_pause_s=60)
    group = GpuGroup(lambda: starter.start("ready"), limits, clock=lambda: now[0])
    group.check(busy=False, may_start=True)
    _, ready = starter.messages.get(timeout=START_TIMEOUT_S)
    assert isinstance(ready, Ready)
    group.on_ready(ready)
    group.start_job(RunJob(job_id="j", order=ORDER, folder=Path()))
    for _ in range(100):
        now[0] += 0.9
        group.on_progress(None)
        assert group.check(busy=True, may_start=True) is None
    group.stop()


def test_stopped_ready_group_starts_again_at_once_with_new_processes(scene):
    group = scene.group()
    scene.bring_up(group)
    first = group.process
    group.stop()
    assert group.state is GpuGroupState.DOWN
    group.check(busy=False, may_start=True)
    assert group.process not in {None, first}


def test_stopping_a_group_that_is_down_does_nothing(scene):
    group = scene.group()
    group.stop()
    assert group.state is GpuGroupState.DOWN
