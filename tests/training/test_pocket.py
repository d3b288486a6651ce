"""The shipped checkpoint is as good as its committed measurement."""

import importlib.util
import json
import re

import pytest
import torch

from jobs.settings import POCKET
from model.pipeline.pipeline import Pipeline
from tests.architecture.source import ROOT
from training.checkpoint import LIMITS
from training.quality import (
    DEFAULT_TASKS,
    MODES,
    NUM_REGRESSION_TRIALS,
    markdown,
    measure,
    regressions,
    tabulate,
)

pytestmark = pytest.mark.skipif(not POCKET.exists(), reason="pocket/ does not exist")

QUICK = [("standard", "text to video"), ("distilled", "continuation")]
MAX_BYTES = 20_000_000


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.load(POCKET, torch.float32)


@pytest.fixture(scope="module")
def tables():
    return json.loads((POCKET / "quality.json").read_text())


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs/pocket.md").read_text()


def test_documentation_contains_committed_measurement(tables, page):
    assert markdown(tables["all"]) in page


def test_documentation_names_only_existing_modules_and_files(page):
    modules = set(re.findall(r"python -m (training\.\w+)", page))
    assert len(modules) == 7
    assert all(importlib.util.find_spec(name) for name in modules)
    assert all((ROOT / path).exists() for path in re.findall(r"`(training/\w+\.py)`", page))


def test_limits_are_those_that_training_writes():
    assert json.loads((POCKET / "limits.json").read_text()) == LIMITS


def test_checkpoint_is_small_enough_for_repository():
    assert sum(path.stat().st_size for path in POCKET.rglob("*") if path.is_file()) <= MAX_BYTES


def test_checkpoint_has_both_loras(pipeline):
    assert pipeline.lora.names == {"cfg_step_lora", "refinement_lora"}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("mode", "task"),
    [
        pytest.param(mode, task, marks=() if (mode, task) in QUICK else pytest.mark.soak)
        for mode in MODES
        for task in DEFAULT_TASKS
    ],
)
def test_videos_are_as_good_as_committed_measurement(pipeline, tables, mode, task):
    scores = tabulate(list(measure(pipeline, mode, task, range(NUM_REGRESSION_TRIALS))))[mode]
    before = tables[f"first {NUM_REGRESSION_TRIALS}"][mode]
    assert regressions(scores, before, NUM_REGRESSION_TRIALS) == []
