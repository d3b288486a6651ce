from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.pipeline.state import Stage
from model.spec.plan import Plan, Refinement
from worker.rank.progress import GENERATED, ProgressMeter, UnitTimes

PLAN = Plan(
    task="long_video",
    height=480,
    width=832,
    num_frames=93,
    num_segments=2,
    num_condition_frames=13,
    num_inference_steps=10,
    guidance_scale=4.0,
    distilled=False,
    condition_cache=True,
    enhance_hf=False,
    fps=15,
)
REFINED = PLAN.model_copy(
    update={
        "refinement": Refinement(
            height=704, width=1280, num_inference_steps=50, t_thresh=0.5, spatial_only=False, num_held=0
        )
    }
)
CONTINUED_STEPS = 19  # of 10, with `enhance_hf`
STAGES: tuple[Stage, ...] = ("denoise", "refine")


class TimedMeter:
    """A progress meter with a clock that the test advances."""

    def __init__(self, plan: Plan = PLAN, unit_times: UnitTimes | None = None) -> None:
        self.now = 0.0
        self.plan = plan
        self.unit_times: UnitTimes = {} if unit_times is None else unit_times
        self.meter = ProgressMeter(plan, {}, self.unit_times, lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def denoise(self, segment: int, first: int, last: int, step_s: float = 2.0, num_steps: int = 10) -> None:
        for step in range(first, last + 1):
            self.now += step_s
            self.meter.step("denoise", segment, step, num_steps)

    def decode(self, segment: int, count: int, frame_s: float = 0.1) -> None:
        for _ in range(count):
            self.now += frame_s
            self.meter.add_frames(segment, 1)


def run_whole(timed: TimedMeter) -> list[float]:
    fractions = []
    for segment, frames in ((0, 93), (1, 80)):
        timed.meter.enter("denoise", segment)
        timed.denoise(segment, 1, 10)
        fractions.append(timed.meter.progress.fraction)
        timed.meter.enter("decode", segment)
        timed.decode(segment, frames)
        fractions.append(timed.meter.progress.fraction)
    return fractions


def test_eta_is_none_before_anything_is_measured():
    progress = TimedMeter().meter.enter("encode", 0)
    assert (progress.fraction, progress.eta_s, progress.num_segments) == (0.0, None, 2)


def test_only_the_end_of_the_video_remains_when_all_work_is_done():
    timed = TimedMeter()
    assert run_whole(timed)[-1] == pytest.approx(GENERATED)
    assert timed.meter.progress.eta_s == 0.0


def test_eta_of_a_second_job_of_the_same_shape_is_exact():
    first = TimedMeter()
    run_whole(first)
    whole_s = first.now
    second = TimedMeter(unit_times=first.unit_times)
    second.denoise(0, 1, 5)
    assert second.meter.progress.eta_s == pytest.approx(whole_s - second.now)
    assert second.meter.progress.fraction == pytest.approx(GENERATED * second.now / whole_s, abs=1e-4)


@pytest.mark.parametrize("change", [{"height": 720, "width": 1280}, {"step_cache": 0.1}])
def test_times_of_another_shape_are_not_used(change):
    first = TimedMeter()
    run_whole(first)
    other = TimedMeter(PLAN.model_copy(update=change), first.unit_times)
    assert other.meter.enter("encode", 0).eta_s is None


def test_eta_is_proportional_to_the_time_of_a_step():
    etas_s = []
    for step_s in (2.0, 20.0):
        timed = TimedMeter()
        timed.denoise(0, 1, 5, step_s)
        etas_s.append(timed.meter.progress.eta_s)
    fast_s, slow_s = etas_s
    assert fast_s is not None
    assert slow_s == pytest.approx(10 * fast_s, rel=1e-3)


def test_progress_shows_phase_segment_and_step():
    timed = TimedMeter()
    timed.denoise(1, 1, 3)
    progress = timed.meter.progress
    assert (progress.phase, progress.segment, progress.step, progress.num_steps) == ("denoise", 1, 3, 10)


def test_number_of_steps_of_the_event_replaces_the_planned_one():
    timed = TimedMeter()
    timed.wait(1.0)
    progress = timed.meter.step("denoise", 0, 1, 56)
    assert (progress.step, progress.num_steps) == (1, 56)
    assert progress.fraction < 1 / 56


def test_continued_segments_count_with_their_own_number_of_steps():
    timed = TimedMeter(PLAN.model_copy(update={"enhance_hf": True, "num_segments": 3}))
    parts = [(0, 10, 93), (1, CONTINUED_STEPS, 80), (2, CONTINUED_STEPS, 80)]
    etas_s = []
    for segment, num_steps, num_frames in parts:
        timed.denoise(segment, 1, 5, num_steps=num_steps)
        etas_s.append((timed.now, timed.meter.progress.eta_s))
        timed.denoise(segment, 6, num_steps, num_steps=num_steps)
        timed.decode(segment, num_frames)
    for now, eta_s in etas_s[1:]:  # once a frame was measured
        assert eta_s == pytest.approx(timed.now - now)
    assert timed.meter.progress.eta_s == pytest.approx(0, abs=1e-3)
    first_s = 2.0 * (10 - 5 + 2 * CONTINUED_STEPS)  # besides the decoding, which is guessed
    assert etas_s[0][1] == pytest.approx(first_s + 3 * 0.5 * 2.0, abs=1.0)


def test_job_resumed_in_a_continued_segment_has_the_steps_of_the_first_one_done():
    plan = PLAN.model_copy(update={"enhance_hf": True, "num_condition_frames": 0})
    whole = TimedMeter(plan)
    whole.denoise(0, 1, 10)
    whole.decode(0, 93)
    whole.denoise(1, 1, 4, num_steps=CONTINUED_STEPS)
    resumed = TimedMeter(plan, whole.unit_times)
    resumed.meter.resume(1, "denoise", 4)
    resumed.denoise(1, 5, 5, num_steps=CONTINUED_STEPS)
    whole.denoise(1, 5, 5, num_steps=CONTINUED_STEPS)
    assert resumed.meter.progress == whole.meter.progress


def test_resumed_job_begins_with_the_fraction_that_was_done():
    whole = TimedMeter()
    run_whole(whole)
    resumed = TimedMeter(unit_times=whole.unit_times)
    resumed.meter.resume(1, "denoise", 5)
    progress = resumed.meter.enter("encode", 1)
    assert progress.segment == 1
    assert 0.6 < progress.fraction < 0.7  # 15 of 20 steps, and half of the frames
    resumed.denoise(1, 6, 10)
    resumed.decode(1, 80)
    assert resumed.meter.progress.fraction == pytest.approx(GENERATED, abs=0.02)


@given(st.integers(0, 1), st.integers(1, 10), st.floats(0.1, 100), st.integers(0, 80))
def test_fraction_of_a_resumed_job_begins_with_what_was_saved_and_does_not_fall(
    segment: int, step: int, step_s: float, frames: int
):
    first = TimedMeter()
    if segment:
        first.denoise(0, 1, 10, step_s)
        first.decode(0, 93)
    first.denoise(segment, 1, step, step_s)
    first.decode(segment, frames if step == 10 else 0)
    saved = first.meter.fraction_at(segment, "denoise", step)
    assert 0 < saved <= first.meter.progress.fraction
    resumed = TimedMeter()
    resumed.meter.resume(segment, "denoise", step, saved)
    assert resumed.meter.progress.fraction == saved
    assert resumed.meter.enter("encode", segment).fraction >= saved


def test_fraction_that_is_saved_leaves_out_what_was_done_since():
    timed = TimedMeter()
    timed.denoise(0, 1, 10)
    denoised = timed.meter.progress.fraction
    timed.decode(0, 93)
    assert timed.meter.fraction_at(0, "denoise", 10) <= denoised < timed.meter.progress.fraction
    assert timed.meter.fraction_at(0, "denoise", 5) < denoised


def test_job_resumed_in_refinement_has_its_first_stage_done():
    early, late = TimedMeter(REFINED), TimedMeter(REFINED)
    early.meter.resume(0, "denoise", 10)
    late.meter.resume(0, "refine", 1)
    assert early.meter.enter("encode", 0).fraction < late.meter.enter("encode", 0).fraction


def test_timings_are_summed_by_phase_over_attempts():
    timed = TimedMeter()
    meter = ProgressMeter(PLAN, {"denoise": 10.0}, {}, lambda: timed.now)
    timed.wait(1.0)
    meter.enter("encode", 0)
    timed.wait(2.0)
    meter.enter("denoise", 0)
    timed.wait(4.0)
    meter.step("denoise", 0, 1, 10)
    timed.wait(8.0)
    meter.add_frames(0, 4)
    assert meter.timings_s == {"load": 1.0, "encode": 2.0, "denoise": 14.0, "decode": 8.0}


@given(
    st.lists(st.floats(0.001, 100), min_size=40, max_size=40),
    st.sampled_from([PLAN, REFINED]),
    st.integers(1, 60),
)
def test_fraction_never_decreases_and_never_exceeds_its_limit(times_s, plan, num_steps):
    timed, updates = TimedMeter(plan), []
    durations = iter(times_s)
    for segment in range(2):
        for stage in STAGES[: 2 if plan.refinement else 1]:
            updates.append(timed.meter.enter(stage, segment))
            for step in range(1, min(num_steps, 5) + 1):
                timed.wait(next(durations))
                updates.append(timed.meter.step(stage, segment, step, num_steps))
        for _ in range(4):
            timed.wait(next(durations))
            updates.append(timed.meter.add_frames(segment, 20))
    fractions = [progress.fraction for progress in updates]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= GENERATED for fraction in fractions)
    assert all(progress.eta_s is None or progress.eta_s >= 0 for progress in updates)
