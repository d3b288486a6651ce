"""The page of GPUs is generated from the prediction of memory."""

from __future__ import annotations

from docs.gpus_page import document, released_prepared_bytes, released_sizes
from model.spec.memory import Setup
from tests.docs.pages import DOCS
from tests.model.spec.test_memory import RELEASED


def test_committed_page_is_current():
    assert (DOCS / "gpus.md").read_text() == document(), "run: make generate"


def test_merged_weights_take_the_documented_memory():
    """`docs/operations.md` has the numbers."""
    setups = Setup(), Setup(quantize="fp8")
    sizes = [round(released_prepared_bytes(setup) / 1e9, 1) for setup in setups]
    assert sizes == [77.6, 47.4]


def test_sizes_are_those_that_tests_of_the_prediction_use():
    assert released_sizes() == RELEASED
