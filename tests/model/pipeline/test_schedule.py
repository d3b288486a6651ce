"""Noise levels against the published tables, and what must hold for any number of steps."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.pipeline import schedule
from model.pipeline.conditioning import base_schedule
from model.spec.steps import num_steps
from tests.model.parity_cases import PARITY
from tests.orders import make_order

TABLES = json.loads((PARITY / "schedules_shift_12.json").read_text())
SHIFT = 12.0


def ours(name: str) -> schedule.Schedule:
    """The schedule of a table, by its name."""
    kind, steps, *t_thresh = name.replace("enhance_hf", "enhance").replace("t_thresh_", "").split("_")
    if kind == "distill":
        return schedule.distilled(int(steps), SHIFT)
    levels = schedule.standard(int(steps), SHIFT)
    if kind == "refine":
        return schedule.begin_at(float(t_thresh[0]), levels)
    return schedule.enhance_hf(levels) if kind == "enhance" else levels


@pytest.mark.parametrize("name", TABLES)
def test_levels_are_the_published_ones_bit_for_bit(name):
    levels, table = ours(name), TABLES[name]
    assert levels.timesteps.tolist() == torch.tensor(table["timesteps"]).tolist()
    assert levels.sigmas.tolist() == torch.tensor(table["sigmas"]).tolist()


@pytest.mark.parametrize(
    ("name", "forwards"),
    [("enhance_hf_50", 56), ("refine_50_t_thresh_0.5", 5), ("distill_16", 16), ("standard_50", 50)],
)
def test_number_of_steps_is_that_of_the_release(name, forwards):
    assert len(ours(name).timesteps) == forwards


@given(steps=st.integers(1, 100), shift=st.floats(1.0, 20.0))
def test_levels_fall_from_one_to_zero(steps, shift):
    for levels in (schedule.standard(steps, shift), schedule.distilled(min(steps, 50), shift)):
        assert levels.sigmas[0].item() == pytest.approx(1)
        assert levels.sigmas[-1] == 0
        assert (levels.sigmas.diff() < 0).all()
        assert len(levels.sigmas) == len(levels.timesteps) + 1


@given(steps=st.integers(1, 100), shift=st.floats(1.0, 20.0))
def test_enhanced_levels_fall_and_end_in_steps_of_fifty(steps, shift):
    levels = schedule.enhance_hf(schedule.standard(steps, shift))
    assert (levels.timesteps.diff() < 0).all()
    assert levels.timesteps[-10:].tolist() == [500, 450, 400, 350, 300, 250, 200, 150, 100, 50]


@given(steps=st.integers(1, 100), t_thresh=st.floats(0.01, 1.0))
def test_refinement_begins_at_its_noise_level_and_falls(steps, t_thresh):
    levels = schedule.begin_at(t_thresh, schedule.standard(steps, SHIFT))
    assert levels.sigmas[0] == pytest.approx(t_thresh)
    assert (levels.sigmas.diff() < 0).all()


@given(steps=st.integers(1, 100), shift=st.floats(1.0, 20.0), is_continuation=st.booleans())
@pytest.mark.parametrize("enhance_hf", [False, True])
def test_steps_are_counted_as_the_schedule_has_them(steps, shift, is_continuation, enhance_hf):
    plan = make_order(num_inference_steps=steps, enhance_hf=enhance_hf).plan
    levels = base_schedule(plan, shift, is_continuation)
    assert num_steps(plan, is_continuation=is_continuation, shift=shift) == len(levels.timesteps)


def test_timesteps_and_sigmas_are_fp32():
    for name in TABLES:
        assert {x.dtype for x in ours(name)} == {torch.float32}
