"""A requirement says what a group needs to run a job, in few different texts."""

from __future__ import annotations

import pytest

from jobs.capability import Capability
from jobs.requirement import Requirement, can_run
from model.spec.limits import Limits
from tests.orders import make_order

LIMITS = Limits.from_json({}).to_json()
FULL = Capability(
    model="base",
    tasks=("text_to_video", "refine"),
    limits=LIMITS,
    loras=("cfg_step_lora", "refinement_lora"),
    device="cuda",
    dtype="bfloat16",
)
DISTILLED = make_order(distilled=True, guidance_scale=1.0)


@pytest.mark.parametrize(
    ("order", "change", "can"),
    [
        (make_order(), {}, True),
        (make_order(), {"loras": ()}, True),
        (DISTILLED, {}, True),
        (DISTILLED, {"loras": ("refinement_lora",)}, False),
        (make_order(), {"tasks": ("refine",)}, False),
        (make_order(), {"order_versions": (1,)}, False),
        (make_order().model_copy(update={"model": "base"}), {}, True),
        (make_order().model_copy(update={"model": "canary"}), {}, False),
        (make_order(), {"limits": {**LIMITS, "max_num_frames": 92}}, False),
        (make_order(), {"limits": {**LIMITS, "max_pixels": 64 * 64}}, False),
        (make_order(), {"limits": {}}, True),
    ],
)
def test_group_can_run_what_its_capability_allows(order, change, can):
    requirement = str(Requirement.of(order, [FULL]))
    assert can_run(FULL.model_copy(update=change), requirement) is can


def test_text_is_read_back():
    order = DISTILLED.model_copy(update={"model": "base"})
    requirement = Requirement.of(order, [FULL])
    assert Requirement.parse(str(requirement)) == requirement
    assert str(requirement).startswith("frames=93,loras=cfg_step_lora,model=base,order=2,pixels=")


def test_sizes_are_rounded_up_to_limits_of_known_groups():
    small = FULL.model_copy(update={"limits": {**LIMITS, "max_num_frames": 49}})
    frames = [
        Requirement.of(make_order(num_frames=num_frames), [FULL, small]).sizes["frames"]
        for num_frames in (5, 45, 49, 53, 93)
    ]
    assert frames == [49, 49, 49, 93, 93]


def test_requirement_of_a_newer_release_is_met_by_no_group():
    assert not can_run(FULL, "order=2,task=text_to_video,teleports=1")
    assert not can_run(FULL, "nonsense")


def test_every_group_may_try_a_job_without_a_requirement():
    assert can_run(FULL, None)
    assert can_run(FULL, "")
