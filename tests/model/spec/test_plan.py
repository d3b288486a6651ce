from __future__ import annotations

import pytest

from model.spec.limits import Limits
from model.spec.params import GenerationParams
from model.spec.plan import count_lora_changes
from model.spec.resolve import Inputs, resolve

LIMITS = Limits.from_json({})
BASE: dict[str, object] = {}
DISTILLED, REFINED = {"distilled": True}, {"refine": True}
LONG: dict[str, object] = {"num_segments": 4}


@pytest.mark.parametrize(
    ("jobs", "changes"),
    [
        ([BASE, BASE], 0),
        ([LONG | DISTILLED, DISTILLED], 1),
        ([REFINED], 1),
        ([DISTILLED | REFINED], 2),
        ([LONG | REFINED], 7),
        ([LONG | DISTILLED | REFINED], 8),
        ([REFINED, BASE, DISTILLED, BASE], 4),
    ],
)
def test_changes_of_lora_are_counted_over_segments_and_jobs(jobs, changes):
    plans = [resolve(GenerationParams.model_validate(job), Inputs(), LIMITS) for job in jobs]
    assert count_lora_changes(plans) == changes


def test_refinement_of_a_clip_has_one_stage():
    plan = resolve(GenerationParams.model_validate(LONG | REFINED), Inputs(), LIMITS)
    assert plan.stage_loras == (None, "refinement_lora")
    assert plan.model_copy(update={"task": "refine"}).stage_loras == ("refinement_lora",)
