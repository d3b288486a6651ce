"""Pixels and latents, and how a refined clip lies."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.spec.geometry import (
    Size,
    frames_at_rate,
    frames_of_latents,
    latent_frames,
    nearest_bucket,
    refine_layout,
    windows,
)
from model.spec.limits import Limits
from tests.model.parity_cases import PARITY


def test_the_released_tables_are_the_published_ones_in_their_order():
    limits, published = Limits.from_json({}), json.loads((PARITY / "buckets.json").read_text())
    for name, table in published.items():
        ours = limits.refine_buckets if name == "refine" else limits.buckets[name]
        assert [[ratio, list(size)] for ratio, size in ours.items()] == [[*row] for row in table.items()]


def test_the_default_negative_prompt_is_the_published_one():
    assert (
        Limits.from_json({}).negative_prompt == (PARITY / "default_negative_prompt.txt").read_text().strip()
    )


@given(st.integers(0, 50))
def test_latent_frames_and_frames_agree(k):
    assert latent_frames(4 * k + 1) == k + 1
    assert frames_of_latents(k + 1) == 4 * k + 1


def test_the_first_of_equally_near_buckets_is_taken():
    table = {"0.50": Size(1, 2), "1.50": Size(3, 2)}
    assert nearest_bucket(table, 100, 100) == (1, 2)


@pytest.mark.parametrize(
    ("num_frames", "held", "condition", "front", "noise", "padded", "latents"),
    [
        (186, 26, 8, 3, 40, 189, 48),
        (186, 0, 0, 0, 48, 192, 48),
        (186, 1, 4, 12, 48, 205, 52),
        (93, 13, 4, 0, 20, 93, 24),
        (10, 0, 0, 0, 4, 16, 4),
    ],
)
def test_refined_clips_lie_as_published(num_frames, held, condition, front, noise, padded, latents):
    layout = refine_layout(num_frames, held)
    assert (layout.condition_latents, layout.front_padding, layout.noise_latents) == (condition, front, noise)
    assert (layout.padded_frames, layout.latent_frames) == (padded, latents)


@given(num_frames=st.integers(1, 400), data=st.data())
def test_no_refined_frame_is_lost_and_bricks_are_whole(num_frames, data):
    held = data.draw(st.integers(0, num_frames - 1))
    layout = refine_layout(num_frames, held)
    assert layout.condition_latents % 4 == layout.noise_latents % 4 == 0
    assert layout.noise_latents > 0
    assert latent_frames(layout.padded_frames) == layout.latent_frames
    assert layout.front_padding + num_frames <= frames_of_latents(layout.latent_frames)
    assert layout.front_padding + num_frames <= layout.padded_frames
    if held:
        assert layout.front_padding + held == frames_of_latents(layout.condition_latents)


@given(first=st.integers(0, 60), count=st.integers(0, 60))
def test_windows_pick_just_the_frames_asked_for(first, count):
    picked, start = [], 0
    for i, window in enumerate(windows(first, count)):
        chunk = list(range(start, start + (1 if i == 0 else 4)))
        picked += chunk[window]
        start += len(chunk)
    assert picked == list(range(first, first + count))


@given(first=st.integers(0, 60), count=st.integers(1, 60))
def test_windows_end_with_the_last_chunk_that_is_needed(first, count):
    last = windows(first, count)[-1]
    assert last.start < last.stop
    assert len(windows(first, count)) == latent_frames(first + count + 3)


@given(num_moments=st.integers(1, 400), fps=st.sampled_from([15, 16, 24, 30]), start_s=st.floats(0, 1000))
@example(num_moments=3, fps=15, start_s=0.0)
def test_frames_at_a_rate_are_frames_of_the_clip(num_moments, fps, start_s):
    times_s = [start_s, start_s + num_moments / fps - 0.001]  # just so long that rounding decides
    taken = frames_at_rate(times_s, fps)
    assert set(taken) <= {0, 1}
    assert taken == sorted(taken)
    assert taken[-1] == 1
