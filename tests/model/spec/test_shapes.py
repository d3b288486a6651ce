"""Parameters are resolved or refused; what is accepted has a valid shape."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from model.pipeline.conditioning import refine_layout_of
from model.spec.geometry import SIDE_MULTIPLE, Clip, Size, latent_frames
from model.spec.limits import Limits
from model.spec.plan import GenerationParams, InvalidParams, Plan
from model.spec.shapes import resolve

RELEASED = Limits.from_json({})
IMAGE, CLIP = Size(600, 800), Clip(600, 800, 40)
BRICK_PIXELS = 64  # a brick's four tokens of sixteen pixels


def refused(field: str, **params) -> str:
    with pytest.raises(InvalidParams) as caught:
        resolve(GenerationParams(**params), RELEASED)
    assert caught.value.field == field
    return caught.value.rule


sizes = st.builds(Size, st.integers(1, 3000), st.integers(1, 3000))
clips = st.builds(Clip, st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 120))


def maybe(strategy):
    return st.none() | strategy


any_params = st.builds(
    GenerationParams,
    task=maybe(
        st.sampled_from(["text_to_video", "image_to_video", "video_continuation", "long_video", "refine"])
    ),
    num_prompts=st.integers(1, 4),
    image=maybe(sizes),
    video=maybe(clips),
    condition_video=maybe(clips),
    resolution=maybe(st.sampled_from(["480p", "720p", "1080p"])),
    height=maybe(st.integers(1, 100).map(lambda n: n * 16) | st.integers(-5, 2000)),
    width=maybe(st.integers(1, 100).map(lambda n: n * 16) | st.integers(-5, 2000)),
    num_frames=maybe(st.integers(0, 25).map(lambda n: 4 * n + 1) | st.integers(-5, 120)),
    num_segments=maybe(st.integers(-1, 50)),
    num_condition_frames=maybe(st.integers(0, 25).map(lambda n: 4 * n + 1) | st.integers(-1, 100)),
    num_inference_steps=maybe(st.integers(-1, 120)),
    guidance_scale=maybe(st.floats(-1, 30)),
    distilled=st.booleans(),
    refine=st.booleans(),
    t_thresh=maybe(st.floats(-0.5, 1.5)),
    spatial_refine_only=st.booleans(),
)


def refusal(params: GenerationParams) -> InvalidParams | None:
    try:
        resolve(params, RELEASED)
    except InvalidParams as illegal:
        return illegal
    return None


def settled(params: GenerationParams) -> Plan:
    try:
        return resolve(params, RELEASED)
    except InvalidParams:
        assume(condition=False)
        raise


@given(any_params)
def test_every_refusal_names_a_field(params):
    illegal = refusal(params)
    if illegal:
        assert illegal.field in {field.name for field in dataclasses.fields(GenerationParams)} | {"prompts"}
        assert illegal.rule


def valid_params():
    """Parameters that are mostly valid: one of the inputs, with a few other options."""
    starts: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
        [
            {},
            {"image": IMAGE},
            {"video": CLIP},
            {"num_segments": 3},
            {"num_segments": 2, "video": CLIP},
            {"num_prompts": 3},
        ]
    )
    frames = st.integers(0, 23).map(lambda n: {"num_frames": 4 * n + 1})
    held = maybe(st.integers(0, 9)).map(lambda n: {} if n is None else {"num_condition_frames": 4 * n + 1})
    stages = st.sampled_from(
        [{}, {"refine": True}, {"refine": True, "spatial_refine_only": True}, {"distilled": True}]
    )
    return st.tuples(starts, frames, held, stages).map(
        lambda parts: GenerationParams(**{k: v for p in parts for k, v in p.items()})
    )


def refine_params():
    clip = st.builds(Clip, st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 93))
    hold = st.sampled_from(
        [{}, {"image": IMAGE}, {"condition_video": CLIP}, {"condition_video": Clip(9, 9, 1)}]
    )
    held = maybe(st.integers(1, 40))

    def params(video, hold, held, spatial):
        counts = {"num_condition_frames": held} if "condition_video" in hold else {}
        return GenerationParams(task="refine", video=video, spatial_refine_only=spatial, **hold, **counts)

    return st.builds(params, clip, hold, held, st.booleans())


@given(valid_params() | refine_params() | any_params)
def test_accepted_parameters_resolve_to_a_valid_shape(params):
    plan = settled(params)
    if plan.task != "refine":
        assert plan.height % SIDE_MULTIPLE == plan.width % SIDE_MULTIPLE == 0
        assert plan.num_frames % 4 == 1
        clean = (
            latent_frames(plan.num_condition_frames) if plan.num_condition_frames else int(bool(params.image))
        )
        assert clean < latent_frames(plan.num_frames)
    assert 1 <= plan.num_segments <= RELEASED.max_num_segments
    assert plan.repeated_frames < plan.num_frames * plan.frame_factor
    assert plan.output_frames > 0
    if plan.refinement:
        assert plan.refinement.height % BRICK_PIXELS == plan.refinement.width % BRICK_PIXELS == 0
        for segment in range(min(plan.num_segments, 2)):
            layout = refine_layout_of(plan, segment)
            assert layout.condition_latents % 4 == layout.noise_latents % 4 == 0
            assert layout.noise_latents > 0
            assert layout.num_held < layout.num_frames
            assert latent_frames(layout.padded_frames) == layout.latent_frames


@given(valid_params())
def test_segments_add_up_to_the_finished_video(params):
    plan = settled(params)
    joined = plan.num_frames * plan.frame_factor
    for _ in range(1, plan.num_segments):
        joined += plan.num_frames * plan.frame_factor - plan.repeated_frames
    assert joined == plan.output_frames


def test_nothing_said_is_the_released_default():
    plan = resolve(GenerationParams(), RELEASED)
    assert (plan.task, plan.height, plan.width) == ("text_to_video", 480, 832)
    assert (plan.num_frames, plan.num_inference_steps, plan.guidance_scale, plan.fps) == (93, 50, 4.0, 15)
    assert plan.refinement is None


def test_distilled_defaults():
    plan = resolve(GenerationParams(distilled=True, video=CLIP), RELEASED)
    assert (plan.num_inference_steps, plan.guidance_scale, plan.enhance_hf) == (16, 1.0, False)


def test_continuation_defaults():
    plan = resolve(GenerationParams(video=CLIP), RELEASED)
    assert (plan.task, plan.num_condition_frames) == ("video_continuation", 13)
    assert plan.condition_cache
    assert plan.enhance_hf


def test_refined_defaults():
    plan = resolve(GenerationParams(refine=True), RELEASED)
    assert plan.refinement is not None
    assert (plan.refinement.t_thresh, plan.refinement.num_inference_steps) == (0.5, 50)
    assert (plan.output_size, plan.output_fps, plan.output_frames) == ((704, 1280), 30, 186)


def test_tasks_are_told_by_their_inputs():
    any_params = {
        "image_to_video": GenerationParams(image=IMAGE),
        "video_continuation": GenerationParams(video=CLIP),
        "long_video": GenerationParams(num_prompts=2),
    }
    assert {task: resolve(params, RELEASED).task for task, params in any_params.items()} == {
        task: task for task in any_params
    }


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("num_frames", {"num_frames": 92}),
        ("num_frames", {"num_frames": 0}),
        ("num_frames", {"num_frames": 97}),
        ("num_frames", {"num_frames": 1, "image": IMAGE}),
        ("height", {"height": 100, "width": 96}),
        ("width", {"height": 96}),
        ("height", {"width": 96}),
        ("height", {"height": 1280, "width": 1280}),
        ("width", {"height": 96, "width": 48}),
        ("resolution", {"resolution": "1080p"}),
        ("resolution", {"resolution": "480p", "height": 96, "width": 96}),
        ("num_inference_steps", {"num_inference_steps": 0}),
        ("num_inference_steps", {"num_inference_steps": 51, "distilled": True}),
        ("guidance_scale", {"guidance_scale": 0.5}),
        ("guidance_scale", {"guidance_scale": 4.0, "distilled": True}),
        ("num_segments", {"task": "text_to_video", "num_segments": 2}),
        ("num_segments", {"num_segments": 41}),
        ("prompts", {"num_prompts": 2, "num_segments": 3}),
        ("num_condition_frames", {"num_condition_frames": 13}),
        ("num_condition_frames", {"video": CLIP, "num_condition_frames": 12}),
        ("num_condition_frames", {"video": CLIP, "num_condition_frames": 41}),
        ("num_condition_frames", {"video": CLIP, "num_frames": 13, "num_condition_frames": 13}),
        ("image", {"task": "image_to_video"}),
        ("image", {"task": "text_to_video", "image": IMAGE}),
        ("image", {"image": IMAGE, "video": CLIP}),
        ("video", {"task": "refine"}),
        ("video", {"task": "refine", "video": Clip(64, 64, 94)}),
        ("video", {"task": "refine", "video": Clip(64, 64, 1), "image": IMAGE, "spatial_refine_only": True}),
        ("num_frames", {"task": "refine", "video": CLIP, "num_frames": 13}),
        ("num_condition_frames", {"task": "refine", "video": CLIP, "num_condition_frames": 4}),
        ("t_thresh", {"t_thresh": 0.5}),
        ("t_thresh", {"refine": True, "t_thresh": 0.0}),
        ("spatial_refine_only", {"spatial_refine_only": True}),
        ("condition_video", {"condition_video": CLIP}),
    ],
)
def test_what_is_not_legal_is_refused_by_name(field, params):
    assert refused(field, **params)


def test_a_users_shape_picks_the_bucket():
    assert resolve(GenerationParams(image=Size(1000, 500)), RELEASED).output_size == (896, 448)
    assert resolve(GenerationParams(image=Size(1000, 500), resolution="720p"), RELEASED).output_size == (
        1344,
        672,
    )


def test_where_a_checkpoint_knows_some_sizes_only_others_are_refused():
    tables = {"480p": {"0.67": [64, 96]}, "720p": {"0.67": [64, 96], "1.00": [96, 96]}}
    limits = Limits.from_json({"buckets": tables, "only_buckets": True})
    assert resolve(GenerationParams(height=96, width=96), limits).output_size == (96, 96)
    with pytest.raises(InvalidParams, match="must be one of 64×96, 96×96") as caught:
        resolve(GenerationParams(height=96, width=64), limits)
    assert caught.value.field == "height"


def test_limits_come_back_from_their_document():
    assert Limits.from_json(RELEASED.to_json()) == RELEASED


@pytest.mark.parametrize("document", [{"max_frames": 3}, {"buckets": 3}, {"default_size": [1]}])
def test_limits_that_mean_nothing_are_refused(document):
    with pytest.raises((ValueError, TypeError, AttributeError)):
        Limits.from_json(document)


def test_a_balanced_video_needs_guidance_and_many_steps_of_its_own():
    assert resolve(GenerationParams(), RELEASED).step_cache is None
    assert resolve(GenerationParams(step_cache=0.1, refine=True), RELEASED).step_cache == 0.1
    assert "guidance_scale" in refused("quality", step_cache=0.1, guidance_scale=1.0)
    assert "guidance_scale" in refused("quality", step_cache=0.1, distilled=True)
    assert "exact" in refused("quality", step_cache=0.1, task="refine", video=CLIP)
    assert "between 0 and 1" in refused("step_cache", step_cache=1.0)
