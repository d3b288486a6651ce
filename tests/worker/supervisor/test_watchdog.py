from __future__ import annotations

from jobs.record import Progress
from worker.supervisor.watchdog import SLOWEST_STEPS, Watchdog

SILENCE_S, STEP_S = 60.0, 2.0


class Clock:
    """Time that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.watchdog = Watchdog(SILENCE_S, STEP_S, self.clock)
        self.watchdog.start_job()

    def wait(self, seconds: float) -> bool:
        """Let time pass, polling as the supervisor does; return whether the group counts as stalled."""
        stalled = False
        for _ in range(round(seconds * 10)):
            self.clock.now += 0.1
            stalled = self.watchdog.is_stalled()
        return stalled

    def step(self, step: int, num_steps: int = 50, phase: str = "denoise", after_s: float = 1.0) -> None:
        self.wait(after_s)
        self.watchdog.on_message(Progress(phase=phase, step=step, num_steps=num_steps))


def test_silence_before_the_first_step_may_last_for_the_silence_limit():
    scene = Scene()
    assert not scene.wait(SILENCE_S - 1)
    assert scene.wait(2)


def test_any_message_ends_the_silence():
    scene = Scene()
    scene.wait(SILENCE_S - 1)
    scene.watchdog.on_message(None)
    assert not scene.wait(SILENCE_S - 1)


def test_silence_between_steps_is_limited_by_the_step_time():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, after_s=1.0)
    assert not scene.wait(SLOWEST_STEPS - 0.5)
    assert scene.wait(1.0)


def test_slowest_step_sets_the_limit():
    scene = Scene()
    for step, after_s in ((1, 1.0), (2, 1.0), (3, 4.0), (4, 1.0)):
        scene.step(step, after_s=after_s)
    assert not scene.wait(4 * SLOWEST_STEPS - 1)


def test_fast_steps_have_the_lowest_limit():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, after_s=0.1)
    assert not scene.wait(STEP_S - 0.2)
    assert scene.wait(0.5)


def test_silence_limit_applies_after_the_last_step():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, num_steps=3, after_s=0.1)
    assert not scene.wait(SILENCE_S - 1)


def test_silence_limit_applies_to_the_first_step_of_a_stage():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, num_steps=3, after_s=0.1)
    scene.step(0, phase="refine", after_s=0.1)
    assert not scene.wait(SILENCE_S - 1)


def test_next_job_does_not_inherit_the_step_time():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, after_s=0.1)
    scene.watchdog.start_job()
    assert not scene.wait(SILENCE_S - 1)


def test_time_while_the_supervisor_was_suspended_does_not_count():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, after_s=0.1)
    scene.clock.now += 3600
    assert not scene.watchdog.is_stalled()
    assert scene.wait(STEP_S)
