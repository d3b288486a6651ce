"""Check how the intervals of a job are collected."""

from __future__ import annotations

from itertools import count

import pytest

from jobs.record import Progress, Status
from worker.supervisor import timeline as timeline_module
from worker.supervisor.timeline import JobTimeline
from worker.telemetry import Interval


class Spans:
    """Record what `worker.supervisor.tracing.JobSpans` gets."""

    def __init__(self) -> None:
        self.added: list[tuple[str, bool]] = []
        self.finished: list[Status | None] = []

    def add(self, interval: Interval, *, failed: bool = False) -> None:
        self.added.append((interval.name, failed))

    def finish(self, status: Status | None) -> None:
        self.finished.append(status)


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def timeline(spans) -> JobTimeline:
    """A timeline whose clock advances by a second with each reading."""
    clock = count(100)
    return JobTimeline(spans, lambda: float(next(clock)))


def intervals(timeline: JobTimeline) -> list[tuple[str, float, float]]:
    return [(interval.name, interval.began_s, interval.ended_s) for interval in timeline.intervals]


def test_first_phase_is_load_and_lasts_until_now(timeline):
    assert intervals(timeline) == [("load", 100.0, 101.0)]


def test_phases_have_no_gaps_and_steps_are_their_details(timeline):
    for phase, step in (
        ("encode", 0),
        ("denoise", 0),
        ("denoise", 1),
        ("denoise", 2),
        ("decode", 0),
        ("decode", 0),
    ):
        timeline.enter_phase(Progress(phase=phase, step=step, num_steps=2))
    assert intervals(timeline) == [
        ("load", 100.0, 101.0),
        ("encode", 101.0, 102.0),
        ("step 1", 102.0, 103.0),
        ("step 2", 103.0, 104.0),
        ("denoise", 102.0, 105.0),
        ("chunk", 105.0, 106.0),
        ("decode", 105.0, 107.0),
    ]
    assert [interval.name for interval in timeline.intervals if interval.detail] == [
        "step 1",
        "step 2",
        "chunk",
    ]
    assert [interval.lane for interval in timeline.intervals if not interval.detail] == [
        "job",
        *["ranks"] * 3,
    ]


def test_same_phase_of_another_segment_is_another_stage(timeline):
    for segment in (0, 1):
        timeline.enter_phase(Progress(phase="denoise", segment=segment))
    assert [(interval.name, interval.segment) for interval in timeline.intervals] == [
        ("load", 0),
        ("denoise", 0),
        ("denoise", 1),
    ]


def test_ended_phase_does_not_go_on(timeline):
    timeline.enter_phase(Progress(phase="decode"))
    timeline.end_phase()
    timeline.end_phase()
    assert intervals(timeline) == [("load", 100.0, 101.0), ("decode", 101.0, 102.0)]
    timeline.enter_phase(Progress(phase="upload"))
    assert (intervals(timeline)[-1][0], timeline.intervals[-1].lane) == ("upload", "storage")


def test_measured_work_is_a_stage_unless_it_raises(timeline):
    with timeline.measure("fetch", "job"):
        pass
    with pytest.raises(OSError, match="away"), timeline.measure("video", "storage"):
        raise OSError("away")
    timeline.add_wait()
    assert intervals(timeline)[:2] == [("fetch", 101.0, 102.0), ("wait", 102.0, 104.0)]


def test_details_are_no_spans(timeline, spans):
    timeline.enter_phase(Progress(phase="denoise"))
    timeline.enter_phase(Progress(phase="denoise", step=1))
    timeline.finish("failed")
    timeline.finish(None)
    assert (spans.added, spans.finished) == ([("load", False), ("denoise", True)], ["failed"])


def test_details_are_limited_and_stages_are_not(timeline, monkeypatch):
    monkeypatch.setattr(timeline_module, "MAX_DETAILS", 2)
    for step in range(5):
        timeline.enter_phase(Progress(phase="denoise", step=step))
    timeline.enter_phase(Progress(phase="decode"))
    assert [interval.name for interval in timeline.intervals] == ["load", "step 1", "denoise", "decode"]
