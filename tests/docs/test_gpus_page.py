"""The page of GPUs is generated from the prediction of memory."""

from __future__ import annotations

from docs.gpus_page import document, released_prepared_bytes, released_sizes
from model.spec.memory import Quantize, Setup, host_needed
from tests.docs.pages import DOCS
from tests.model.spec.test_memory import RELEASED


def test_committed_page_is_current():
    assert (DOCS / "gpus.md").read_text() == document(), "run: make generate"


def test_merged_weights_take_the_documented_memory():
    """`docs/groups.md` has the numbers."""
    quantised: tuple[Quantize, ...] = ("none", "fp8")
    setups = [Setup(quantize=q, stream_weights=stream) for stream in (False, True) for q in quantised]
    sizes = [round(released_prepared_bytes(setup) / 1e9, 1) for setup in setups]
    assert sizes == [77.6, 47.4, 79.3, 48.3]
    copies = [host_needed(RELEASED, setup, num_ranks=1, num_leaders=0).block_copies for setup in setups[2:]]
    assert [round(size / 1e9, 1) for size in copies] == [28.3, 17.5]


def test_sizes_are_those_that_tests_of_the_prediction_use():
    assert released_sizes() == RELEASED
