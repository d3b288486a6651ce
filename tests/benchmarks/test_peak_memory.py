"""The peak of live activations at full size. A tensor that is kept longer than it is used raises a peak."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from tests.benchmarks.untyped import run_program

pytestmark = pytest.mark.integration

COUNT = """
import json
import torch
from dataclasses import asdict
from benchmarks.formulas import BASE, REFINED
from benchmarks.peak_memory import (
    CASES, RANKS, attention_peak, decode_peak, encode_peak, encode_text_peak, forward_peak
)
from benchmarks.traffic import LiveTensors
from model.spec.memory import (
    CheckpointSizes, Setup, decode_bytes, encode_bytes, encode_text_bytes, forward_bytes,
)
from model.spec.stages import StageShape

SIZES = CheckpointSizes(transformer=0, quantised=0, text_encoder=5_680_910_336, vae=0, width=4096, depth=48)

def in_pixels(window, num_texts=1, step_cache=False):
    height, width = 8 * window.height, 8 * window.width
    return StageShape(window.num_frames, height, width, num_texts=num_texts, step_cache=step_cache)

def kept():
    x = torch.empty(1000, device="meta")
    y = x + 1
    return x * y

with LiveTensors() as alive:
    kept()
    y = torch.empty(10, device="meta")
    with alive.paused():
        torch.empty(10_000, device="meta")
    z = y[:5]
    del y
    kept_bytes = alive.alive_bytes
    del z
    left_bytes = alive.alive_bytes

short = {name: window._replace(num_frames=9) for name, window in (("480p", BASE), ("720p", REFINED))}
short["272p"] = BASE._replace(num_frames=9, height=34, width=60)
print(json.dumps({
    "vae": {
        f"{kind} {name}": asdict(peak(window, torch.bfloat16))
        | {"predicted": predicted(SIZES, in_pixels(window), Setup())}
        for kind, peak, predicted in (
            ("encode", encode_peak, encode_bytes), ("decode", decode_peak, decode_bytes)
        )
        for name, window in short.items()
    },
    "text": [
        asdict(encode_text_peak(placement, dtype))
        | {"predicted": encode_text_bytes(SIZES, Setup(1, dtype.itemsize, text_encoder=placement))}
        for placement in ("device", "offload") for dtype in (torch.float32, torch.bfloat16)
    ],
    "three tensors": alive.peak_bytes,
    "kept by a view": kept_bytes,
    "left": left_bytes,
    "forwards": [
        {
            "name": name, "dtype": str(dtype), "ranks": ranks, **asdict(forward_peak(case, dtype, ranks)),
            "predicted": forward_bytes(
                SIZES, in_pixels(case.window, case.num_texts, case.step_cache), Setup(ranks, dtype.itemsize)
            ),
        }
        for name, case in CASES.items() for dtype in (torch.float32, torch.bfloat16) for ranks in RANKS
    ],
    "attention": [
        [attention_peak(CASES[name], torch.bfloat16, ranks, slow_links=slow).units for slow in (False, True)]
        for name in ("480p", "480p, condition frames", "720p, refinement") for ranks in (2, 8)
    ],
    "int8": [
        asdict(forward_peak(CASES["480p"], dtype, ranks, quantize="int8"))
        | {"predicted": forward_bytes(SIZES, in_pixels(BASE), Setup(ranks, dtype.itemsize, "int8"))}
        for dtype, ranks in (
            (torch.float32, 4), (torch.bfloat16, 1), (torch.bfloat16, 4), (torch.bfloat16, 8)
        )
    ],
}))
"""
UNITS = {"torch.float32": 10.4, "torch.bfloat16": 11.1}
"""Peaks in tensors [tokens, width] of the dtype.

In fp32 in the feed-forward: the block's input, the tokens after self- and after cross-attention, the result
of cross-attention, the modulated tokens, and two hidden tensors of 2.7 widths. In bf16 in the rotation of the
keys: the block's input, the product of qkv (3), the rotated queries and three fp32 tensors.
"""
STEP_CACHE_UNITS = 2
"""What a step cache adds: the tokens after the first block, and the update of that block."""
TOLERANCE = 0.25
VAE_GB = {"encode 480p": 3.35, "decode 480p": 4.72, "encode 720p": 5.40, "decode 720p": 7.47}
LARGEST_TENSOR = 2**31 - 1


class Forward(NamedTuple):
    name: str
    dtype: str
    ranks: int


@pytest.fixture(scope="module")
def counted():
    return json.loads(run_program(COUNT).stdout)


@pytest.fixture(scope="module")
def forwards(counted):
    return {Forward(found["name"], found["dtype"], found["ranks"]): found for found in counted["forwards"]}


def test_peak_counts_all_tensors_that_are_alive_at_once(counted):
    assert counted["three tensors"] == 3 * 1000 * 4
    assert (counted["kept by a view"], counted["left"]) == (10 * 4, 0)


def test_forward_keeps_no_tensor_after_its_last_use(forwards):
    assert len(forwards) == 36
    changed = [
        f"{forward}: {found['units']:.2f} [tokens, width] at {found['place']}"
        for forward, found in forwards.items()
        if abs(found["units"] - _expected_units(forward)) > TOLERANCE
    ]
    assert not changed, "\n".join(changed)


def _expected_units(forward: Forward) -> float:
    return UNITS[forward.dtype] + ("step cache" in forward.name) * STEP_CACHE_UNITS


def test_ranks_divide_the_activations_evenly(forwards):
    for forward, found in forwards.items():
        alone = forwards[forward._replace(ranks=1)]
        assert found["size_bytes"] * forward.ranks == pytest.approx(alone["size_bytes"], rel=0.02)


def test_slices_of_heads_do_not_raise_the_peak_of_attention(counted):
    """It is that of packing: the product of qkv (3), rotated queries and keys, and what is sent (3)."""
    assert len(counted["attention"]) == 6
    for at_once, in_slices in counted["attention"]:
        assert in_slices == at_once == pytest.approx(8.0, abs=0.01)


def test_vae_keeps_no_tensor_after_its_last_use(counted):
    found = {name: (peak["size_bytes"] / 1e9, peak["place"]) for name, peak in counted["vae"].items()}
    for name, expected_gb in VAE_GB.items():
        size_gb, place = found[name]
        assert size_gb == pytest.approx(expected_gb, rel=0.03), place


def test_no_tensor_of_the_vae_has_too_many_elements_for_32_bits(counted):
    assert all(peak["largest_elements"] <= LARGEST_TENSOR for peak in counted["vae"].values())


def test_peak_is_placed_in_the_code_of_the_model(forwards):
    assert all(found["place"].startswith("model.transformer.") for found in forwards.values())


def test_predicted_memory_is_near_each_peak(counted):
    """The predictions are those of `model.spec.memory`, by which a worker tells what fits into a GPU."""
    for peak in (*counted["vae"].values(), *counted["text"], *counted["forwards"], *counted["int8"]):
        assert peak["predicted"] == pytest.approx(peak["size_bytes"], rel=0.05), peak
