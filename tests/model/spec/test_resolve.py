"""Options are resolved or refused; what is accepted has a valid shape."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from model.spec.errors import InvalidParams
from model.spec.geometry import SIDE_MULTIPLE, Clip, Size, latent_frames
from model.spec.limits import Limits
from model.spec.params import GenerationParams, Task
from model.spec.plan import Plan, refine_layout_of
from model.spec.resolve import Inputs, resolve

RELEASED = Limits.from_json({})
IMAGE, CLIP = Size(600, 800), Clip(600, 800, 40)
BRICK_PIXELS = 64  # a brick's four tokens of sixteen pixels


INPUTS = {"num_prompts", "image", "video", "condition_video"}


def make_plan(limits: Limits = RELEASED, step_cache: float | None = None, **given) -> Plan:
    """Resolve options and inputs, which are told apart by name."""
    inputs = Inputs(**{name: given.pop(name) for name in INPUTS & given.keys()})
    return resolve(GenerationParams.parse(given), inputs, limits, step_cache=step_cache)


def refused(field: str, **given) -> str:
    with pytest.raises(InvalidParams) as caught:
        make_plan(**given)
    assert caught.value.field == field
    return caught.value.rule


sizes = st.builds(Size, st.integers(1, 3000), st.integers(1, 3000))
clips = st.builds(Clip, st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 120))


def maybe(strategy):
    return st.none() | strategy


any_request = st.fixed_dictionaries(
    {
        "task": maybe(st.sampled_from(get_args(Task))),
        "num_prompts": st.integers(1, 4),
        "image": maybe(sizes),
        "video": maybe(clips),
        "condition_video": maybe(clips),
        "resolution": maybe(st.sampled_from(["480p", "720p", "1080p"])),
        "height": maybe(st.integers(1, 100).map(lambda n: n * 16) | st.integers(-5, 2000)),
        "width": maybe(st.integers(1, 100).map(lambda n: n * 16) | st.integers(-5, 2000)),
        "num_frames": maybe(st.integers(0, 25).map(lambda n: 4 * n + 1) | st.integers(-5, 120)),
        "num_segments": maybe(st.integers(-1, 50)),
        "num_condition_frames": maybe(st.integers(0, 25).map(lambda n: 4 * n + 1) | st.integers(-1, 100)),
        "num_inference_steps": maybe(st.integers(-1, 120)),
        "guidance_scale": maybe(st.floats(-1, 30)),
        "distilled": st.booleans(),
        "refine": st.booleans(),
        "t_thresh": maybe(st.floats(-0.5, 1.5)),
        "spatial_refine_only": st.booleans(),
    }
)


def plan_or_discard(given) -> Plan:
    """Return the plan. Discard the Hypothesis example if it is refused."""
    try:
        return make_plan(**given)
    except InvalidParams:
        assume(condition=False)
        raise


def refusal_of(given) -> InvalidParams | None:
    try:
        make_plan(**given)
    except InvalidParams as refusal:
        return refusal
    return None


@given(any_request)
def test_every_refusal_names_a_field_and_a_rule(request_):
    refusal = refusal_of(request_)
    if refusal:
        assert refusal.field in GenerationParams.model_fields.keys() | INPUTS | {"prompts"}
        assert refusal.rule


def valid_requests():
    """Requests that are mostly valid: one of the inputs, with a few other options."""
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
        lambda parts: {name: value for part in parts for name, value in part.items()}
    )


def refine_requests():
    clip = st.builds(Clip, st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 93))
    hold = st.sampled_from(
        [{}, {"image": IMAGE}, {"condition_video": CLIP}, {"condition_video": Clip(9, 9, 1)}]
    )
    held = maybe(st.integers(1, 40))

    def request(video, hold, held, spatial):
        counts = {"num_condition_frames": held} if "condition_video" in hold else {}
        return {"task": "refine", "video": video, "spatial_refine_only": spatial, **hold, **counts}

    return st.builds(request, clip, hold, held, st.booleans())


@given(valid_requests() | refine_requests() | any_request)
def test_accepted_requests_resolve_to_a_valid_shape(request_):
    plan = plan_or_discard(request_)
    if plan.task != "refine":
        assert plan.height % SIDE_MULTIPLE == plan.width % SIDE_MULTIPLE == 0
        assert plan.num_frames % 4 == 1
        clean = (
            latent_frames(plan.num_condition_frames)
            if plan.num_condition_frames
            else int(bool(request_.get("image")))
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


@given(valid_requests())
def test_segments_add_up_to_the_finished_video(request_):
    plan = plan_or_discard(request_)
    joined = plan.num_frames * plan.frame_factor
    for _ in range(1, plan.num_segments):
        joined += plan.num_frames * plan.frame_factor - plan.repeated_frames
    assert joined == plan.output_frames


def test_a_request_without_options_has_the_released_defaults():
    plan = make_plan()
    assert (plan.task, plan.height, plan.width) == ("text_to_video", 480, 832)
    assert (plan.num_frames, plan.num_inference_steps, plan.guidance_scale, plan.fps) == (93, 50, 4.0, 15)
    assert plan.refinement is None


def test_distilled_defaults():
    plan = make_plan(distilled=True, video=CLIP)
    assert (plan.num_inference_steps, plan.guidance_scale, plan.enhance_hf) == (16, 1.0, False)


def test_continuation_defaults():
    plan = make_plan(video=CLIP)
    assert (plan.task, plan.num_condition_frames) == ("video_continuation", 13)
    assert plan.condition_cache
    assert plan.enhance_hf


def test_refined_defaults():
    plan = make_plan(refine=True)
    assert plan.refinement is not None
    assert (plan.refinement.t_thresh, plan.refinement.num_inference_steps) == (0.5, 50)
    assert (plan.output_size, plan.output_fps, plan.output_frames) == ((704, 1280), 30, 186)


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ({}, "text_to_video"),
        ({"image": IMAGE}, "image_to_video"),
        ({"video": CLIP}, "video_continuation"),
        ({"num_prompts": 2}, "long_video"),
        ({"num_segments": 2}, "long_video"),
    ],
)
def test_the_task_is_inferred_from_the_inputs(given, task):
    assert make_plan(**given).task == task


@pytest.mark.parametrize(
    ("field", "given"),
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
def test_an_invalid_option_is_refused_by_name(field, given):
    assert refused(field, **given)


def test_the_shape_of_an_image_selects_the_size():
    assert make_plan(image=Size(1000, 500)).output_size == (896, 448)
    assert make_plan(image=Size(1000, 500), resolution="720p").output_size == (
        1344,
        672,
    )


def test_a_checkpoint_can_allow_only_the_sizes_of_its_tables():
    tables = {"480p": {"0.67": [64, 96]}, "720p": {"0.67": [64, 96], "1.00": [96, 96]}}
    limits = Limits.from_json({"buckets": tables, "only_buckets": True})
    assert make_plan(limits, height=96, width=96).output_size == (96, 96)
    with pytest.raises(InvalidParams, match="must be one of 64×96, 96×96") as caught:
        make_plan(limits, height=96, width=64)
    assert caught.value.field == "height"


def test_limits_survive_a_round_trip_through_json():
    assert Limits.from_json(RELEASED.to_json()) == RELEASED


def test_limits_of_a_later_release_can_be_read():
    assert Limits.from_json({"of_a_later_release": 3}) == RELEASED


@pytest.mark.parametrize("document", [{"buckets": 3}, {"default_size": [1]}])
def test_invalid_limits_are_refused(document):
    with pytest.raises((ValueError, TypeError, AttributeError)):
        Limits.from_json(document)


def test_balanced_needs_guidance_and_a_threshold_and_is_not_for_refinement():
    assert make_plan(step_cache=0.1).step_cache is None
    assert make_plan(step_cache=0.1, quality="balanced", refine=True).step_cache == 0.1
    balanced = {"step_cache": 0.1, "quality": "balanced"}
    assert "guidance_scale" in refused("quality", **balanced, guidance_scale=1.0)
    assert "guidance_scale" in refused("quality", **balanced, distilled=True)
    assert "exact" in refused("quality", **balanced, task="refine", video=CLIP)
    assert "between 0 and 1" in refused("step_cache", quality="balanced", step_cache=1.0)
    assert "not available" in refused("quality", quality="balanced")
