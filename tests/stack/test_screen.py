"""What people see of a job: where it stands, once, and what came out."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from stack.screen import Screen, describe


def job(**changed):
    progress = {"phase": "denoise", "step": 3, "num_steps": 4, "fraction": 0.5, "eta_s": 1.25}
    return {"status": "running", "queue_position": None, "progress": progress, **changed}


def running(**changed):
    return job(progress={**job()["progress"], **changed})


@pytest.fixture
def shown():
    return io.StringIO()


def test_a_running_job_shows_phase_step_bar_and_time():
    assert describe(job()) == "denoise  3/4    ████████████············  50% 1.2 s to go"


@pytest.mark.parametrize(("fraction", "full"), [(0.0, 0), (0.5, 12), (1.0, 24)])
def test_the_bar_is_as_full_as_the_job_is_done(fraction, full):
    assert describe(running(fraction=fraction)).count("█") == full


def test_what_is_not_known_is_left_out():
    line = describe(running(phase="load", step=0, num_steps=0, fraction=0.0, eta_s=None))
    assert line == "load            ························   0%"


@pytest.mark.parametrize(("position", "line"), [(1, "queued, number 1"), (None, "queued")])
def test_a_queued_job_shows_its_place(position, line):
    assert describe(job(status="queued", queue_position=position, progress=None)) == line


@pytest.mark.parametrize("status", ["uploading", "succeeded", "failed", "cancelled"])
def test_any_other_state_is_named(status):
    assert describe(job(status=status)) == status


def test_a_job_that_has_just_begun_is_named():
    assert describe(job(progress=None)) == "running"


def test_a_file_gets_a_line_for_each_change_and_no_more(shown):
    screen = Screen(shown, live=False)
    for fraction in (0.0, 0.5, 0.5, 1.0):
        screen.progress("prompt", running(fraction=fraction))
    assert len(shown.getvalue().splitlines()) == 3


def test_on_a_terminal_the_line_is_written_over(shown):
    screen = Screen(shown, live=True)
    for fraction in (0.0, 1.0):
        screen.progress("prompt", running(fraction=fraction))
    assert "\n" not in shown.getvalue()
    assert shown.getvalue().count("\r\x1b[K") == 2


def test_the_next_line_does_not_run_into_it(shown):
    screen = Screen(shown, live=True)
    screen.progress("prompt", job())
    screen.say("next")
    screen.say("last")
    assert shown.getvalue().endswith("to go\nnext\nlast\n")


def test_a_film_is_described_by_its_result(shown):
    result = {"num_frames": 17, "width": 96, "height": 64, "fps": 15, "duration_s": 17 / 15}
    ended = {
        "result": {**result, "size_bytes": 12345, "seed": 7},
        "timings_s": {"denoise": 1.0, "decode": 0.5},
    }
    Screen(shown, live=False).film(Path("out/prompt.mp4"), ended)
    assert shown.getvalue() == (
        "out/prompt.mp4: 17 frames of 96×64 at 15 fps (1.1 s), 12,345 bytes, seed 7, made in 1.5 s\n"
    )
