"""Test both sides of every limit, the exact rule that each refusal names, and the errors of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.spec.errors import CheckpointError, InputError, InvalidParams
from model.spec.geometry import Clip, Size, every_nth, refine_layout, windows
from model.spec.limits import Limits, load_limits
from tests.model.spec.test_resolve import make_plan

LIMITS = Limits.from_json(
    {"max_num_frames": 93, "max_num_segments": 40, "max_pixels": 921600, "min_side": 64}
)
IMAGE, CLIP = Size(600, 800), Clip(600, 800, 40)
REFINE: dict[str, Any] = {"task": "refine", "video": CLIP}
REFINED: dict[str, Any] = {**CLIP._asdict(), "num_segments": 1, "guidance_scale": 1.0}


@pytest.mark.parametrize(
    "params",
    [
        {"num_frames": 1},
        {"num_frames": 93},
        {"num_frames": 5, "image": IMAGE},
        {"height": 64, "width": 64},
        {"height": 720, "width": 1280},
        {"num_inference_steps": 1},
        {"num_inference_steps": LIMITS.max_num_inference_steps},
        {"num_inference_steps": 50, "distilled": True},
        {"guidance_scale": 1.0},
        {"guidance_scale": LIMITS.max_guidance_scale},
        {"num_segments": 1},
        {"num_segments": 40},
        {"num_prompts": 3},
        {"num_prompts": 3, "num_segments": 3},
        {"video": CLIP, "num_condition_frames": 1},
        {"video": Clip(600, 800, 13), "num_condition_frames": 13},
        {"video": CLIP, "num_frames": 17, "num_condition_frames": 13},
        {"task": "refine", "video": Clip(64, 64, 93)},
        {"task": "refine", "video": Clip(64, 64, 1), "image": IMAGE},
        {"task": "refine", "video": Clip(64, 64, 2), "image": IMAGE, "spatial_refine_only": True},
        REFINE | {"condition_video": Clip(64, 64, 30), "num_condition_frames": 30},
        REFINE | {"condition_video": CLIP, "num_condition_frames": 1},
        {"task": "refine", "video": Clip(9, 9, 5), "condition_video": CLIP, "num_condition_frames": 9},
        {"refine": True, "t_thresh": 1.0},
        {"refine": True, "t_thresh": 0.001},
        {"quality": "balanced", "step_cache": 0.001},
        {"quality": "balanced", "step_cache": 0.999, "guidance_scale": 1.5},
    ],
)
def test_value_at_limit_is_accepted(params):
    make_plan(LIMITS, **params)


@pytest.mark.parametrize(
    ("params", "refusal"),
    [
        ({"num_frames": 97}, "num_frames: must be between 1 and 93"),
        ({"num_frames": 92}, "num_frames: must be one more than a multiple of 4"),
        ({"num_frames": 1, "image": IMAGE}, "num_frames: must be more than 1 with an image"),
        ({"height": 40, "width": 64}, "height: must be a multiple of 16"),
        ({"height": 64, "width": 48}, "width: must be at least 64"),
        ({"height": 64}, "width: height and width must be given together"),
        ({"width": 64}, "height: height and width must be given together"),
        ({"height": 736, "width": 1280}, "height: height × width must be at most 921600, is 942080"),
        (
            {"resolution": "480p", "height": 64, "width": 64},
            "resolution: cannot be combined with height and width",
        ),
        ({"resolution": "1080p"}, "resolution: must be one of 480p, 720p"),
        ({"num_inference_steps": 101}, "num_inference_steps: must be between 1 and 100"),
        ({"num_inference_steps": 51, "distilled": True}, "num_inference_steps: must be between 1 and 50"),
        ({"guidance_scale": 0.99}, "guidance_scale: must be between 1 (off) and 20"),
        ({"guidance_scale": 1.5, "distilled": True}, "guidance_scale: must be 1 (off) with distilled"),
        ({"num_segments": 41}, "num_segments: long_video has between 1 and 40 segments"),
        ({"num_prompts": 41}, "prompts: long_video has between 1 and 40 segments"),
        (
            {"task": "text_to_video", "num_segments": 2},
            "num_segments: text_to_video has one segment",
        ),
        (
            {"num_prompts": 2, "num_segments": 3},
            "prompts: must be one, or one for each of 3 segments",
        ),
        ({"num_condition_frames": 13}, "num_condition_frames: needs a clip or several segments"),
        (
            {"video": CLIP, "num_condition_frames": 12},
            "num_condition_frames: must be one more than a multiple of 4",
        ),
        (
            {"video": CLIP, "num_frames": 13, "num_condition_frames": 13},
            "num_condition_frames: must be at least 1 and less than num_frames (13)",
        ),
        (
            {"video": Clip(64, 64, 12), "num_condition_frames": 13},
            "num_condition_frames: must be at most 12, the number of frames of the clip",
        ),
        ({"task": "image_to_video"}, "image: is required for image_to_video"),
        ({"task": "text_to_video", "image": IMAGE}, "image: has no meaning for text_to_video"),
        ({"task": "long_video", "image": IMAGE, "video": CLIP}, "image: cannot be combined with video"),
        (
            REFINE | {"image": IMAGE, "condition_video": CLIP},
            "image: cannot be combined with condition_video",
        ),
        ({"spatial_refine_only": True}, "spatial_refine_only: needs refine"),
        ({"t_thresh": 0.5}, "t_thresh: needs refine"),
        ({"refine": True, "t_thresh": 0.0}, "t_thresh: must be above 0 and at most 1"),
        ({"refine": True, "t_thresh": 1.01}, "t_thresh: must be above 0 and at most 1"),
        (REFINE | {"resolution": "480p"}, "resolution: is determined by the clip that is refined"),
        *(
            (
                REFINE | {field: value + 1},
                f"{field}: must be absent, or {value} as in the clip",
            )
            for field, value in CLIP._asdict().items()
        ),
        (REFINE | {"num_segments": 2}, "num_segments: must be absent, or 1 for refine"),
        (REFINE | {"guidance_scale": 2.0}, "guidance_scale: must be absent, or 1 for refine"),
        (REFINE | {"distilled": True}, "distilled: has no meaning for refine"),
        (REFINE | {"quality": "balanced", "step_cache": 0.1}, "quality: refine is always exact"),
        (REFINE | {"num_prompts": 2}, "prompts: refine takes one prompt"),
        (
            {"task": "refine", "video": Clip(64, 64, 94)},
            "video: must have at most 93 frames to be refined, and has 94",
        ),
        (
            {"task": "refine", "video": Clip(9, 9, 1), "image": IMAGE, "spatial_refine_only": True},
            "video: must have more than one frame with an image",
        ),
        (REFINE | {"num_condition_frames": 4}, "num_condition_frames: needs a condition_video"),
        (
            REFINE | {"condition_video": Clip(9, 9, 30), "num_condition_frames": 31},
            "num_condition_frames: must be between 1 and 30",
        ),
        (
            {"task": "refine", "video": Clip(9, 9, 5), "condition_video": CLIP, "num_condition_frames": 10},
            "num_condition_frames: must be between 1 and 9",
        ),
        (
            REFINE | {"condition_video": CLIP, "num_condition_frames": 40, "spatial_refine_only": True},
            "num_condition_frames: must be between 1 and 39",
        ),
        (
            {"quality": "balanced", "step_cache": 0.1, "guidance_scale": 1.0},
            "quality: balanced needs a guidance_scale above 1",
        ),
        ({"quality": "balanced", "step_cache": 0.0}, "step_cache: must be between 0 and 1"),
        ({"quality": "balanced", "step_cache": 1.0}, "step_cache: must be between 0 and 1"),
        ({"quality": "balanced"}, "quality: balanced is not available"),
    ],
)
def test_refusal_names_field_and_rule(params, refusal):
    with pytest.raises(InvalidParams) as caught:
        make_plan(LIMITS, **params)
    assert str(caught.value) == refusal


def test_options_that_the_clip_determines_may_be_given_with_their_values():
    assert make_plan(LIMITS, **REFINE, **REFINED, num_condition_frames=0) == make_plan(LIMITS, **REFINE)
    assert make_plan(LIMITS, num_condition_frames=0) == make_plan(LIMITS)


def test_refinement_of_a_clip_turns_everything_else_off():
    plan = make_plan(LIMITS, **REFINE)
    assert (plan.height, plan.width, plan.num_frames) == CLIP
    assert (plan.num_segments, plan.num_condition_frames, plan.guidance_scale) == (1, 0, 1.0)
    assert [plan.distilled, plan.condition_cache, plan.enhance_hf] == [False] * 3
    assert plan.step_cache is None


@pytest.mark.parametrize(
    ("params", "num_held"),
    [
        ({}, 0),
        ({"image": IMAGE}, 1),
        ({"condition_video": CLIP}, LIMITS.num_condition_frames),
        ({"condition_video": CLIP, "num_condition_frames": 5}, 5),
    ],
)
def test_refinement_holds_frames_of_its_condition(params, num_held):
    plan = make_plan(LIMITS, **REFINE, **params)
    assert plan.refinement
    assert plan.refinement.num_held == num_held


def test_plan_takes_the_last_frames_of_its_clips():
    plan = make_plan(LIMITS, video=CLIP, num_condition_frames=5, height=64, width=96)
    assert plan.video_taken == Clip(64, 96, 5)
    plan = make_plan(LIMITS, **REFINE, condition_video=CLIP)
    assert plan.refinement
    assert plan.video_taken == CLIP
    assert plan.condition_video_taken == Clip(
        plan.refinement.height, plan.refinement.width, LIMITS.num_condition_frames
    )


def test_refinement_stage_keeps_its_options():
    plan = make_plan(LIMITS, refine=True, spatial_refine_only=True, t_thresh=0.25, image=IMAGE)
    assert plan.refinement
    assert (plan.refinement.t_thresh, plan.refinement.spatial_only, plan.refinement.num_held) == (
        0.25,
        True,
        1,
    )
    assert (plan.frame_factor, plan.output_fps, plan.output_frames) == (1, 15, 93)


@pytest.mark.parametrize(
    ("num_frames", "duration_s", "nth"),
    [(1, 0.0, 1), (2, 1.0, 1), (22, 1.0, 1), (31, 1.0, 2), (46, 1.0, 3), (24, 1.0, 2), (93, 92 / 30, 2)],
)
def test_every_nth_frame_is_nearest_to_the_frame_rate(num_frames, duration_s, nth):
    assert every_nth(num_frames, duration_s, fps=15) == nth


@pytest.mark.parametrize(("num_frames", "noise_latents"), [(12, 4), (13, 4), (14, 8), (29, 8), (30, 12)])
def test_unheld_refinement_decodes_to_enough_frames(num_frames, noise_latents):
    assert refine_layout(num_frames, 0).noise_latents == noise_latents


@pytest.mark.parametrize(("num_held", "condition_latents"), [(1, 4), (13, 4), (14, 8), (29, 8), (30, 12)])
def test_held_frames_fill_whole_bricks(num_held, condition_latents):
    assert refine_layout(93, num_held).condition_latents == condition_latents


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [
        (0, 0, [slice(0, 0)]),
        (0, 1, [slice(0, 1)]),
        (0, 2, [slice(0, 1), slice(0, 1)]),
        (1, 4, [slice(1, 1), slice(0, 4)]),
        (3, 4, [slice(1, 1), slice(2, 4), slice(0, 2)]),
    ],
)
def test_windows_are_slices_of_chunks(first, count, expected):
    assert windows(first, count) == expected


def test_unknown_keys_of_a_checkpoint_are_named(tmp_path):
    (tmp_path / "limits.json").write_text('{"max_frames": 3}')
    with pytest.raises(CheckpointError, match=r"unknown keys \['max_frames'\]; known are \['buckets', .*\]$"):
        load_limits(tmp_path)


def test_unknown_keys_of_published_limits_are_ignored():
    assert Limits.from_json({"max_frames": 3}) == Limits.from_json({})


def test_checkpoint_without_limits_has_the_released_ones(tmp_path):
    assert load_limits(tmp_path) == Limits.from_json({})


def test_limits_are_read_from_the_checkpoint(tmp_path):
    (tmp_path / "limits.json").write_text(json.dumps({"max_num_frames": 9}))
    assert load_limits(tmp_path) == Limits.from_json({"max_num_frames": 9})


@pytest.mark.parametrize("text", ["{", "[]", '{"max_frames": 3}', '{"default_size": [1]}'])
def test_broken_limits_are_an_error_of_the_checkpoint(tmp_path, text):
    path = tmp_path / "limits.json"
    path.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        load_limits(tmp_path)
    assert caught.value.path == path
    assert str(caught.value) == f"{path}: {caught.value.problem}"
    assert caught.value.problem.startswith("cannot be read: ")
    assert caught.value.problem != "cannot be read: None"


def test_errors_name_what_is_wrong_and_survive_pickling_arguments():
    checkpoint, given = CheckpointError(Path("dit"), "is missing"), InputError("image", "is empty")
    assert (str(checkpoint), checkpoint.args) == ("dit: is missing", (Path("dit"), "is missing"))
    assert (str(given), given.args) == ("image: is empty", ("image", "is empty"))
    assert (given.field, given.problem) == ("image", "is empty")
