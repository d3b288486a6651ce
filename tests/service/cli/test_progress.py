"""The progress bar of the command line client."""

from __future__ import annotations

import io

import pytest

from longcat_video_client import Job, Progress
from service.cli.progress import ProgressBar, describe_stage


def a_job(status="running", position=None, **progress):
    known = {"phase": "denoise", "segment": 0, "num_segments": 1, "fraction": 0.5, "eta_s": None}
    shown = Progress(**known | progress) if progress else None
    return Job(id="a", status=status, queue_position=position, progress=shown)


def shown_live(*jobs):
    """Return the states that a terminal shows one after another, each on the same line."""
    stream = io.StringIO()
    with ProgressBar(stream, live=True) as bar:
        for job in jobs:
            bar.show(job)
    return [state.strip() for state in stream.getvalue().split("\r") if state.strip()]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (a_job("queued", 3), "queued, number 3"),
        (a_job("queued"), "queued"),
        (a_job("running"), "running"),
        (a_job(phase="decode"), "decode"),
        (a_job(segment=1, num_segments=3), "denoise 2/3"),
        (a_job("uploading", fraction=1.0), "uploading"),
        (a_job("succeeded", fraction=1.0), "succeeded"),
    ],
)
def test_stage_is_phase_or_status_with_queue_position(job, words):
    assert describe_stage(job) == words


@pytest.mark.parametrize(("fraction", "filled"), [(0.0, 0), (0.5, 15), (1.0, 30)])
def test_bar_is_filled_by_the_fraction_that_is_done(fraction, filled):
    state = shown_live(a_job(fraction=fraction))[-1]
    assert state.count("#") == filled
    assert f"{fraction:.0%}" in state


def test_queued_job_shows_its_position_and_no_bar():
    assert shown_live(a_job("queued", 3))[-1] == "queued, number 3"


def test_queued_job_shows_a_bar_only_of_what_is_saved():
    assert shown_live(a_job("queued", 1, fraction=0.0, eta_s=9.0))[-1] == "queued, number 1"
    saved = shown_live(a_job("queued", 1, fraction=0.5))[-1]
    assert ("50%" in saved, saved.count("#")) == (True, 15)


def test_remaining_time_is_shown_if_known():
    assert shown_live(a_job(eta_s=75.2))[-1].endswith("01:15 left")
    assert "left" not in shown_live(a_job(eta_s=None, fraction=0.1))[-1]


def test_terminal_shows_one_line_that_changes():
    stream = io.StringIO()
    with ProgressBar(stream, live=True) as bar:
        bar.show(a_job(fraction=0.1))
        bar.show(a_job(fraction=0.2))
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")


def test_file_gets_one_line_per_stage():
    stream = io.StringIO()
    with ProgressBar(stream, live=False) as bar:
        for job in (a_job("queued", 1), a_job(fraction=0.1), a_job(fraction=0.2), a_job(phase="decode")):
            bar.show(job)
    assert stream.getvalue() == "queued, number 1\ndenoise\ndecode\n"


def test_bar_that_showed_no_job_writes_nothing():
    stream = io.StringIO()
    with ProgressBar(stream, live=True):
        pass
    assert stream.getvalue() == ""
