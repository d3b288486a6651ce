from __future__ import annotations

from jobs.record import Progress
from worker.supervisor.watchdog import SLOWEST_STEPS, Watchdog

SILENCE_S, STEP_S = 60.0, 2.0


class Clock:
    """Time that a test lets pass, looking at the dog each second as the supervisor does."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.dog = Watchdog(SILENCE_S, STEP_S, self.clock)
        self.dog.begin()

    def wait(self, seconds: float) -> bool:
        """Let time pass in small looks; whether it counted as a hang at the end."""
        stalled = False
        for _ in range(round(seconds * 10)):
            self.clock.now += 0.1
            stalled = self.dog.stalled()
        return stalled

    def step(self, step: int, num_steps: int = 50, phase: str = "denoise", after_s: float = 1.0) -> None:
        self.wait(after_s)
        self.dog.heard(Progress(phase=phase, step=step, num_steps=num_steps))


def test_silence_before_the_first_step_may_last_long():
    scene = Scene()
    assert not scene.wait(SILENCE_S - 1)
    assert scene.wait(2)


def test_any_message_ends_a_silence():
    scene = Scene()
    scene.wait(SILENCE_S - 1)
    scene.dog.heard(None)
    assert not scene.wait(SILENCE_S - 1)


def test_between_measured_steps_a_few_step_times_are_the_limit():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, after_s=1.0)
    assert not scene.wait(SLOWEST_STEPS - 0.5)
    assert scene.wait(1.0)


def test_the_slowest_step_counts():
    scene = Scene()
    for step, after_s in ((1, 1.0), (2, 1.0), (3, 4.0), (4, 1.0)):
        scene.step(step, after_s=after_s)
    assert not scene.wait(4 * SLOWEST_STEPS - 1)


def test_quick_steps_are_given_the_least_limit():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, after_s=0.1)
    assert not scene.wait(STEP_S - 0.2)
    assert scene.wait(0.5)


def test_after_the_last_step_the_limit_is_long_again():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, num_steps=3, after_s=0.1)
    assert not scene.wait(SILENCE_S - 1)


def test_the_first_step_of_the_next_stage_may_last_long():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, num_steps=3, after_s=0.1)
    scene.step(0, phase="refine", after_s=0.1)
    assert not scene.wait(SILENCE_S - 1)


def test_the_next_job_does_not_inherit_the_step_time():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, after_s=0.1)
    scene.dog.begin()
    assert not scene.wait(SILENCE_S - 1)


def test_time_in_which_this_process_was_stopped_is_not_the_group_s_silence():
    scene = Scene()
    for step in (1, 2, 3):
        scene.step(step, after_s=0.1)
    scene.clock.now += 3600
    assert not scene.dog.stalled()
    assert scene.wait(STEP_S)
