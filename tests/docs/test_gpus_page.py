"""The page of GPUs is generated from the prediction of memory."""

from __future__ import annotations

from docs.gpus_page import document, released_sizes
from tests.docs.pages import DOCS
from tests.model.spec.test_memory import RELEASED


def test_committed_page_is_current():
    assert (DOCS / "gpus.md").read_text() == document(), "run: make generate"


def test_sizes_are_those_that_tests_of_the_prediction_use():
    assert released_sizes() == RELEASED
