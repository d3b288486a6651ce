"""A requirement says what a group needs to run a job, in few different texts."""

from __future__ import annotations

import pytest

from jobs.capability import Capability, read_capability
from jobs.requirement import Requirement, can_run
from model.spec.limits import Limits
from model.spec.memory import MemoryBudget
from model.spec.plan import Refinement
from tests.model.spec.test_memory import RELEASED
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


class TestMemory:
    SMALL = FULL.model_copy(update={"memory": MemoryBudget(50 << 30, RELEASED)})
    LARGE = FULL.model_copy(update={"memory": MemoryBudget(130 << 30, RELEASED)})
    REFINED = make_order(
        refinement=Refinement(
            height=704, width=1280, num_inference_steps=5, t_thresh=0.5, spatial_only=False, num_held=0
        )
    )

    def test_group_whose_memory_is_too_small_cannot_run_the_job(self):
        requirement = str(Requirement.of(self.REFINED, [self.SMALL, self.LARGE, FULL]))
        assert [can_run(group, requirement) for group in (self.SMALL, self.LARGE, FULL)] == [
            False,
            True,
            True,
        ]

    def test_job_that_fits_everywhere_does_not_name_memory(self):
        huge = FULL.model_copy(update={"memory": MemoryBudget(1 << 50, RELEASED)})
        assert "too_small" not in str(Requirement.of(self.REFINED, [self.LARGE, huge]))

    def test_text_is_read_back(self):
        requirement = Requirement.of(self.REFINED, [self.SMALL])
        assert Requirement.parse(str(requirement)) == requirement
        assert len(requirement.too_small) == 1

    def test_group_of_which_nothing_was_known_may_try(self):
        other = FULL.model_copy(update={"memory": MemoryBudget(1, RELEASED)})
        assert can_run(other, str(Requirement.of(self.REFINED, [self.LARGE])))

    def test_capability_is_published_with_its_memory(self):
        published = read_capability(self.SMALL.model_dump_json())
        assert published.memory == self.SMALL.memory
        assert published.pool == self.SMALL.pool != self.LARGE.pool
