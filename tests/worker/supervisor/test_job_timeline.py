"""Stages as they are marked: phases with their parts, and what is done beside them."""

from __future__ import annotations

from itertools import count

import pytest

from jobs.record import Progress, Status
from worker import stages
from worker.stages import Stage, Stages


class Spans:
    """Follows `worker.stages.JobSpans`."""

    def __init__(self) -> None:
        self.added: list[tuple[str, bool]] = []
        self.ended: list[Status | None] = []

    def add(self, stage: Stage, *, failed: bool = False) -> None:
        self.added.append((stage.name, failed))

    def end(self, status: Status | None) -> None:
        self.ended.append(status)


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def marked(spans) -> Stages:
    """By a clock that goes on by one second each time that it is looked at."""
    clock = count(100)
    return Stages(spans, lambda: float(next(clock)))


def named(marked: Stages) -> list[tuple[str, float, float]]:
    return [(stage.name, stage.began_s, stage.ended_s) for stage in marked.so_far]


def test_a_job_begins_with_its_load_which_lasts_until_now(marked):
    assert named(marked) == [("load", 100.0, 101.0)]


def test_phases_follow_each_other_without_gaps_and_have_their_steps_as_parts(marked):
    for phase, step in (
        ("encode", 0),
        ("denoise", 0),
        ("denoise", 1),
        ("denoise", 2),
        ("decode", 0),
        ("decode", 0),
    ):
        marked.enter(Progress(phase=phase, step=step, num_steps=2))
    assert named(marked) == [
        ("load", 100.0, 101.0),
        ("encode", 101.0, 102.0),
        ("step 1", 102.0, 103.0),
        ("step 2", 103.0, 104.0),
        ("denoise", 102.0, 105.0),
        ("chunk", 105.0, 106.0),
        ("decode", 105.0, 107.0),
    ]
    assert [stage.name for stage in marked.so_far if stage.detail] == ["step 1", "step 2", "chunk"]
    assert [stage.lane for stage in marked.so_far if not stage.detail] == ["job", *["ranks"] * 3]


def test_the_same_phase_of_another_segment_is_another_stage(marked):
    for segment in (0, 1):
        marked.enter(Progress(phase="denoise", segment=segment))
    assert [(stage.name, stage.segment) for stage in marked.so_far] == [
        ("load", 0),
        ("denoise", 0),
        ("denoise", 1),
    ]


def test_after_the_ranks_left_a_job_nothing_of_theirs_goes_on(marked):
    marked.enter(Progress(phase="decode"))
    marked.leave()
    marked.leave()
    assert named(marked) == [("load", 100.0, 101.0), ("decode", 101.0, 102.0)]
    marked.enter(Progress(phase="upload"))
    assert (named(marked)[-1][0], marked.so_far[-1].lane) == ("upload", "storage")


def test_what_is_done_meanwhile_is_a_stage_and_what_could_not_be_done_is_none(marked):
    with marked.doing("fetch", "job"):
        pass
    with pytest.raises(OSError, match="away"), marked.doing("video", "storage"):
        raise OSError("away")
    marked.waited()
    assert named(marked)[:2] == [("fetch", 101.0, 102.0), ("wait", 102.0, 104.0)]


def test_spans_are_told_of_stages_and_not_of_details(marked, spans):
    marked.enter(Progress(phase="denoise"))
    marked.enter(Progress(phase="denoise", step=1))
    marked.end("failed")
    marked.end(None)
    assert (spans.added, spans.ended) == ([("load", False), ("denoise", True)], ["failed"])


def test_only_so_many_details_are_kept_and_every_stage(marked, monkeypatch):
    monkeypatch.setattr(stages, "MAX_DETAILS", 2)
    for step in range(5):
        marked.enter(Progress(phase="denoise", step=step))
    marked.enter(Progress(phase="decode"))
    assert [stage.name for stage in marked.so_far] == ["load", "step 1", "denoise", "decode"]
