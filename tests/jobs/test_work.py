"""Work units compare the sizes of jobs."""

from __future__ import annotations

import pytest

from jobs.work import work_units
from model.spec.plan import Refinement
from tests.orders import make_order

BASE = 480 * 832 * 93 * 50
STAGE = {"height": 720, "width": 1280, "num_inference_steps": 50, "t_thresh": 0.5, "num_held": 0}
REFINED = 720 * 1280 * 93 * 50 * 0.1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 2 * BASE),
        ({"guidance_scale": 1.0}, BASE),
        ({"num_segments": 3}, 6 * BASE),
        ({"step_cache": 0.1}, 0.6 * 2 * BASE),
        ({"refinement": Refinement(**STAGE, spatial_only=True)}, 2 * BASE + REFINED),
        ({"refinement": Refinement(**STAGE, spatial_only=False)}, 2 * BASE + 2 * REFINED),
        ({"task": "refine", "refinement": Refinement(**STAGE, spatial_only=True)}, REFINED),
    ],
    ids=[
        "guided",
        "no guidance",
        "segments",
        "step cache",
        "spatial refinement",
        "refinement",
        "refine only",
    ],
)
def test_work_counts_pixels_of_all_frames_in_all_passes(changes, expected):
    assert work_units(make_order(**changes).plan) == pytest.approx(expected)


def test_work_is_never_zero():
    assert work_units(make_order(num_inference_steps=0).plan) == 1
