"""The checkpoint that comes with us still does what it did when it was measured."""

import json

import pytest
import torch

from jobs.settings import POCKET
from model.pipeline.pipeline import Pipeline
from training.quality import FIRST, MODES, USUAL, behind, measure, tabulate

pytestmark = pytest.mark.skipif(not POCKET.exists(), reason="there is no pocket checkpoint here")

QUICK = [("standard", "text to video"), ("distilled", "continuation")]
MOST_BYTES = 20_000_000


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.load(POCKET, torch.float32)


@pytest.fixture(scope="module")
def measured():
    tables = json.loads((POCKET / "quality.json").read_text())
    return tables[f"first {FIRST}"]


def test_it_is_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in POCKET.rglob("*") if path.is_file()) <= MOST_BYTES


def test_it_makes_everything_that_can_be_ordered(pipeline):
    assert pipeline.loras == {"cfg_step_lora", "refinement_lora"}


@pytest.mark.parametrize(
    ("mode", "task"),
    [
        pytest.param(mode, task, marks=() if (mode, task) in QUICK else pytest.mark.soak)
        for mode in MODES
        for task in USUAL
    ],
)
def test_films_are_as_good_as_they_were(pipeline, measured, mode, task):
    scores = tabulate(list(measure(pipeline, mode, task, range(FIRST))))[mode]
    assert behind(scores, measured[mode], FIRST) == []
