from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.spec.plan import Plan, Refinement
from worker.rank.progress import GENERATED, Experience, Meter

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


class Scene:
    """A meter whose time passes when the test says so."""

    def __init__(self, plan: Plan = PLAN, experience: Experience | None = None) -> None:
        self.now = 0.0
        self.plan = plan
        self.experience = {} if experience is None else experience
        self.meter = Meter(plan, {}, self.experience, lambda: self.now)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    def denoise(self, segment: int, first: int, last: int, step_s: float = 2.0) -> None:
        for step in range(first, last + 1):
            self.now += step_s
            self.meter.step("denoise", segment, step, 10)

    def decode(self, segment: int, count: int, frame_s: float = 0.1) -> None:
        for _ in range(count):
            self.now += frame_s
            self.meter.frames(segment, 1)


def run_whole(scene: Scene) -> list[float]:
    fractions = []
    for segment, frames in ((0, 93), (1, 80)):
        scene.meter.enter("denoise", segment)
        scene.denoise(segment, 1, 10)
        fractions.append(scene.meter.progress.fraction)
        scene.meter.enter("decode", segment)
        scene.decode(segment, frames)
        fractions.append(scene.meter.progress.fraction)
    return fractions


def test_before_anything_is_known_it_says_no_time():
    progress = Scene().meter.enter("encode", 0)
    assert (progress.fraction, progress.eta_s, progress.num_segments) == (0.0, None, 2)


def test_all_work_done_leaves_the_end_of_the_film():
    scene = Scene()
    assert run_whole(scene)[-1] == pytest.approx(GENERATED)
    assert scene.meter.progress.eta_s == 0.0


def test_the_second_job_of_a_kind_is_told_to_the_second():
    first = Scene()
    run_whole(first)
    whole_s = first.now
    second = Scene(experience=first.experience)
    second.denoise(0, 1, 5)
    assert second.meter.progress.eta_s == pytest.approx(whole_s - second.now)
    assert second.meter.progress.fraction == pytest.approx(GENERATED * second.now / whole_s, abs=1e-4)


@pytest.mark.parametrize("change", [{"height": 720, "width": 1280}, {"step_cache": 0.1}])
def test_another_size_or_quality_is_another_experience(change):
    first = Scene()
    run_whole(first)
    other = Scene(PLAN.model_copy(update=change), first.experience)
    assert other.meter.enter("encode", 0).eta_s is None


def test_the_eta_follows_the_steps_as_they_are():
    scene = Scene()
    scene.denoise(0, 1, 5, step_s=2.0)
    slow = Scene()
    slow.denoise(0, 1, 5, step_s=20.0)
    assert slow.meter.progress.eta_s == pytest.approx(10 * scene.meter.progress.eta_s, rel=1e-3)


def test_step_and_segment_are_shown():
    scene = Scene()
    scene.denoise(1, 1, 3)
    progress = scene.meter.progress
    assert (progress.phase, progress.segment, progress.step, progress.num_steps) == ("denoise", 1, 3, 10)


def test_a_stage_with_other_steps_than_were_thought_is_counted_as_it_is():
    scene = Scene()
    scene.pass_by(1.0)
    progress = scene.meter.step("denoise", 0, 1, 56)
    assert (progress.step, progress.num_steps) == (1, 56)
    assert progress.fraction < 1 / 56


def test_a_resumed_job_begins_where_it_was():
    whole = Scene()
    run_whole(whole)
    resumed = Scene(experience=whole.experience)
    resumed.meter.resume(1, "denoise", 5)
    progress = resumed.meter.enter("encode", 1)
    assert progress.segment == 1
    assert 0.6 < progress.fraction < 0.7  # 15 of 20 steps, and half of the frames
    resumed.denoise(1, 6, 10)
    resumed.decode(1, 80)
    assert resumed.meter.progress.fraction == pytest.approx(GENERATED, abs=0.02)


def test_a_job_resumed_in_its_refinement_has_its_first_stage_done():
    early, late = Scene(REFINED), Scene(REFINED)
    early.meter.resume(0, "denoise", 10)
    late.meter.resume(0, "refine", 1)
    assert early.meter.enter("encode", 0).fraction < late.meter.enter("encode", 0).fraction


def test_timings_are_kept_by_phase_and_added_to_earlier_ones():
    scene = Scene()
    meter = Meter(PLAN, {"denoise": 10.0}, {}, lambda: scene.now)
    scene.pass_by(1.0)
    meter.enter("encode", 0)
    scene.pass_by(2.0)
    meter.enter("denoise", 0)
    scene.pass_by(4.0)
    meter.step("denoise", 0, 1, 10)
    scene.pass_by(8.0)
    meter.frames(0, 4)
    assert meter.timings_s == {"load": 1.0, "encode": 2.0, "denoise": 14.0, "decode": 8.0}


@given(
    st.lists(st.floats(0.001, 100), min_size=40, max_size=40),
    st.sampled_from([PLAN, REFINED]),
    st.integers(1, 60),
)
def test_the_fraction_never_goes_back_and_never_says_more_than_all(times_s, plan, num_steps):
    scene, told = Scene(plan), []
    passing = iter(times_s)
    for segment in range(2):
        for stage in ("denoise", "refine")[: 2 if plan.refinement else 1]:
            told.append(scene.meter.enter(stage, segment))
            for step in range(1, min(num_steps, 5) + 1):
                scene.pass_by(next(passing))
                told.append(scene.meter.step(stage, segment, step, num_steps))
        for _ in range(4):
            scene.pass_by(next(passing))
            told.append(scene.meter.frames(segment, 20))
    fractions = [progress.fraction for progress in told]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= GENERATED for fraction in fractions)
    assert all(progress.eta_s is None or progress.eta_s >= 0 for progress in told)
