"""The line that shows how far a job is."""

from __future__ import annotations

import io

import pytest

from service.cli.progress import Bar, duration, line, stage


def a_job(status="running", place=None, **progress):
    known = {"phase": "denoise", "segment": 0, "num_segments": 1, "fraction": 0.5, "eta_s": None}
    return {"status": status, "queue_position": place, "progress": known | progress if progress else None}


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
def test_a_stage_in_words(job, words):
    assert stage(job) == words


@pytest.mark.parametrize(("fraction", "filled"), [(0.0, 0), (0.5, 15), (1.0, 30)])
def test_the_bar_is_as_full_as_the_job(fraction, filled):
    shown = line(a_job(fraction=fraction))
    assert (shown.count("━"), shown.count("┄")) == (filled, 30 - filled)
    assert f"{fraction:.0%}" in shown


def test_what_is_left_is_said_if_it_is_known():
    assert line(a_job(eta_s=75.2)).endswith("1 min 15 s left")
    assert "left" not in line(a_job(eta_s=None, fraction=0.1))


def test_a_duration_in_words():
    assert [duration(seconds) for seconds in (0.4, 59, 60, 3599)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
    ]


def test_on_a_terminal_one_line_changes():
    stream = io.StringIO()
    with Bar(stream, live=True) as bar:
        bar.show(a_job(fraction=0.1))
        bar.show(a_job(fraction=0.1))
        bar.show(a_job(fraction=0.2))
    assert stream.getvalue().count("\x1b[K") == 2
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")


def test_in_a_file_there_is_a_line_for_each_stage():
    stream = io.StringIO()
    with Bar(stream, live=False) as bar:
        for job in (a_job("queued", 1), a_job(fraction=0.1), a_job(fraction=0.2), a_job(phase="decode")):
            bar.show(job)
    assert stream.getvalue() == "queued, number 1\ndenoise\ndecode\n"


def test_a_bar_that_showed_nothing_leaves_nothing():
    stream = io.StringIO()
    with Bar(stream, live=True):
        pass
    assert stream.getvalue() == ""
