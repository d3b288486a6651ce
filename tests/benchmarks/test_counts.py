"""The counts at a small size, where each can be said by hand; a process of its own, as for `make bench`."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.untyped import run_program

pytestmark = pytest.mark.integration

# 2 frames of 2×4 tokens, 16 wide, 4 heads of 4, FFN of 256, 2 blocks; bricks of 1×2×2
SMALL = """
import json, sys
from dataclasses import replace
import torch
from benchmarks import counts
from model.transformer.config import BrickConfig, DitConfig
from model.transformer.token_layout import Window

config = DitConfig(
    hidden_size=16, depth=2, num_heads=4, caption_channels=8, adaln_tembed_dim=4, frequency_embedding_size=6,
    bsa_params=BrickConfig(0.5, None, (1, 2, 2), (1, 2, 2)),
)
window = Window(2, 4, 8)

found = {
    "flops": counts.flops(config, window),
    "sparse": counts.sparse_flops(config, window),
    "block": counts.block(config, window, torch.device("cpu")),
    "exchanges": [counts.exchanges(config, window, ranks) for ranks in (1, 2, 4)],
    "slow links": [
        counts.exchanges(replace(config, num_heads=8), window, ranks, sparse=sparse, slow_links=True)
        for sparse in (False, True) for ranks in (2, 4)
    ],
    "machines": [
        counts.between_machines(config, window, sparse, 2, 2, ring_degree)
        for sparse in (False, True) for ring_degree in (1, 2)
    ],
    "jobs": [dict(job) for job in counts.repeats(counts.Path(sys.argv[1]))],
}
print(counts.table(found), file=sys.stderr)
print(json.dumps(found))
"""
TOKENS, WIDTH, FFN, DEPTH, TEXT = 16, 16, 256, 2, 512


@pytest.fixture(scope="module")
def counted(tiny_checkpoint):
    finished = run_program(SMALL, str(tiny_checkpoint))
    return json.loads(finished.stdout), finished.stderr


@pytest.fixture(scope="module")
def counts(counted):
    return counted[0]


def test_flops_are_those_of_the_formula(counts):
    found = counts["flops"]
    assert found["tokens"] == TOKENS
    assert found["counted"] == found["formula"] == found["a step"] + found["text"]
    assert found["self_attention"] == DEPTH * 4 * TOKENS**2 * WIDTH
    assert found["cross_attention"] == DEPTH * 4 * TOKENS * TEXT * WIDTH
    # qkv, proj, q_linear, proj, and the FFN's three; patches of 4 × 16 values in and out
    of_token = DEPTH * (6 * WIDTH**2 + 3 * WIDTH * FFN) + 2 * 64 * WIDTH
    of_frame = 4 * 6 + 4 * 4 + DEPTH * 4 * 6 * WIDTH + 4 * 2 * WIDTH
    assert found["linears"] == 2 * (TOKENS * of_token + 2 * of_frame)
    assert found["text"] == 2 * TEXT * (8 * WIDTH + WIDTH**2 + DEPTH * 2 * WIDTH**2)


def test_attention_within_bricks_is_as_much_as_is_kept(counts):
    found = counts["sparse"]
    assert found["counted"] == found["formula"]
    query_bricks, kept = 4, 2
    assert found["self_attention"] == DEPTH * 4 * query_bricks * kept * 4 * 4 * WIDTH


def test_a_block_has_seven_products(counts):
    assert counts["block"]["products"] == 7
    assert counts["block"]["products, compiled"] == 7


def test_the_compiled_block_makes_a_fraction_of_the_passes(counts):
    block = counts["block"]
    assert block["kernels, compiled"] < block["operations, plain"] / 3
    assert block["passes, compiled"] < block["passes, plain"] / 2


def test_a_block_has_two_exchanges_of_the_formulas_size(counts):
    alone, *several = counts["exchanges"]
    assert alone["all-to-alls in a block"] == alone["bytes sent in a block"] == alone["formula"] == 0
    for found in several:
        ranks = found["ranks"]
        assert found["all-to-alls in a block"] == 2
        assert found["formula"] == 4 * TOKENS * WIDTH * 2 * (ranks - 1) // ranks**2
        assert found["bytes sent in a block"] == found["formula"]
        # a share of 64 fp32 values for each token, to every other rank
        assert found["bytes sent to gather a forward"] == TOKENS // ranks * 64 * 4 * (ranks - 1)


def test_slices_over_slow_links_send_the_same_bytes_in_more_exchanges(counts):
    slices = []
    for found in counts["slow links"]:
        ranks = found["ranks"]
        assert (
            found["bytes sent in a block"]
            == found["formula"]
            == 4 * TOKENS * WIDTH * 2 * (ranks - 1) // ranks**2
        )
        slices.append((found["attention"], ranks, found["all-to-alls in a block"] // 2))
    # two or four, as far as they divide the heads of a rank, of which there are four or two
    assert slices == [("dense", 2, 2), ("dense", 4, 2), ("block-sparse", 2, 4), ("block-sparse", 4, 2)]


def test_ring_between_two_machines_sends_as_much_to_the_other_one_as_exchanges_do(counts):
    one = TOKENS * WIDTH * 2  # bytes of a tensor of all tokens
    for found in counts["machines"]:
        assert (
            found["bytes sent within a machine"] + found["bytes sent to other machines"] == found["formula"]
        )
        # Each of 4 ranks has a quarter. Of q, k, v and the result it keeps a quarter and sends one to each of
        # the others; in a ring it keeps half of them on its machine, and sends k and v of half of the heads.
        assert found["bytes sent to other machines"] == one // 2
        within = one // 4 if found["ring"] == 1 else one // 2
        assert found["bytes sent within a machine"] == within


def test_a_job_computes_texts_once(counts):
    first, second, alike = counts["jobs"]
    assert first["texts encoded"] == 4  # the negative prompt, and one for each segment
    assert second["texts encoded"] == 0
    for job in (first, second):
        assert job["texts projected"] == job["cross-attention keys and values"] == 3  # of each prompt
    assert alike["texts encoded"] == 0
    assert alike["texts projected"] == alike["cross-attention keys and values"] == 1  # for all segments
    assert alike["forwards"] == first["forwards"]


def test_the_table_names_every_count(counted):
    counts, shown = counted
    for name in (*counts["flops"], *counts["block"], *counts["jobs"][0]):
        assert name in shown
