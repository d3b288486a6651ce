"""Resolve the options of a request into a plan, or refuse them.

The service does this before it queues a job, and the command line before it loads a model, so both refuse the
same requests for the same reasons. Which options are valid depends on the job and the checkpoint, not on the
number of GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.spec.errors import InvalidParams
from model.spec.geometry import FRAME_STRIDE, SIDE_MULTIPLE, Clip, Size, nearest_bucket
from model.spec.limits import Limits
from model.spec.params import GenerationParams, Task
from model.spec.plan import Plan, Refinement

DISTILLED_SCHEDULE_STEPS = 50  # the distilled model was trained on these; a job uses some of them
T_THRESH = 0.5


@dataclass(frozen=True)
class Inputs:
    """The prompts and files of a request, as far as the plan depends on them: how many and how large."""

    num_prompts: int = 1
    image: Size | None = None
    video: Clip | None = None
    condition_video: Clip | None = None


def resolve(
    params: GenerationParams, inputs: Inputs, limits: Limits, *, step_cache: float | None = None
) -> Plan:
    """Resolve options with the limits of a checkpoint.

    Args:
        params: the options of the request.
        inputs: sizes of its prompts and files.
        limits: limits and defaults of the checkpoint.
        step_cache: threshold that the operator chose for quality `balanced`; None if there is none.

    Raises:
        InvalidParams: the request is not valid; names the field and the rule.
    """
    task = params.task or _infer_task(params, inputs)
    _check_inputs(task, params, inputs)
    if task == "refine":
        return _resolve_refine(params, inputs, limits)
    size = _resolve_size(params, inputs, limits)
    num_frames = _resolve_num_frames(params, inputs, limits)
    num_segments = _resolve_num_segments(task, params, inputs, limits)
    guidance_scale = _resolve_guidance_scale(params, limits)
    return Plan(
        task=task,
        height=size.height,
        width=size.width,
        num_frames=num_frames,
        num_segments=num_segments,
        num_condition_frames=_resolve_num_condition_frames(params, inputs, num_frames, num_segments, limits),
        num_inference_steps=_resolve_num_steps(params, limits),
        guidance_scale=guidance_scale,
        distilled=params.distilled,
        condition_cache=params.condition_cache,
        enhance_hf=params.enhance_hf and not params.distilled,
        fps=limits.fps,
        refinement=_resolve_refinement(
            params, size, limits.num_inference_steps, 1 if inputs.image else 0, limits
        )
        if params.refine
        else None,
        step_cache=_resolve_step_cache(params, guidance_scale, step_cache),
    )


def _resolve_refine(params: GenerationParams, inputs: Inputs, limits: Limits) -> Plan:
    """Resolve the task `refine`, which has a second stage only."""
    clip = inputs.video
    assert clip
    num_steps = _resolve_num_steps(params, limits)
    _require(
        clip.num_frames <= limits.max_num_frames,
        "video",
        f"must have at most {limits.max_num_frames} frames to be refined, and has {clip.num_frames}",
    )
    num_held = _resolve_num_held(params, inputs, limits)
    _check_determined(params, clip._asdict(), "as in the clip")
    _check_determined(params, {"num_segments": 1, "guidance_scale": 1.0}, "for refine")
    return Plan(
        task="refine",
        height=clip.height,
        width=clip.width,
        num_frames=clip.num_frames,
        num_segments=1,
        num_condition_frames=0,
        num_inference_steps=num_steps,
        guidance_scale=1.0,
        distilled=False,
        condition_cache=False,
        enhance_hf=False,
        fps=limits.fps,
        refinement=_resolve_refinement(params, Size(clip.height, clip.width), num_steps, num_held, limits),
    )


def _check_determined(params: GenerationParams, values: Mapping[str, float], reason: str) -> None:
    """Check that options which are already determined are absent, or have these values."""
    for field, value in values.items():
        rule = f"must be absent, or {value:g} {reason}"
        _require(getattr(params, field) in (None, value), field, rule)


def _infer_task(params: GenerationParams, inputs: Inputs) -> Task:
    if (params.num_segments or 1) > 1 or inputs.num_prompts > 1:
        return "long_video"
    if inputs.video:
        return "video_continuation"
    return "image_to_video" if inputs.image else "text_to_video"


INPUTS: Mapping[Task, tuple[set[str], set[str]]] = {  # required, and allowed in addition
    "text_to_video": (set(), set()),
    "image_to_video": ({"image"}, set()),
    "video_continuation": ({"video"}, set()),
    "long_video": (set(), {"image", "video"}),
    "refine": ({"video"}, {"image", "condition_video"}),
}


def _check_inputs(task: Task, params: GenerationParams, inputs: Inputs) -> None:
    """Check that the task has the files that it needs, and no options that it does not use."""
    required, allowed = INPUTS[task]
    for field in ("image", "video", "condition_video"):
        given = getattr(inputs, field) is not None
        _require(given or field not in required, field, f"is required for {task}")
        _require(not given or field in required | allowed, field, f"has no meaning for {task}")
    conflicting = "condition_video" if task == "refine" else "video"
    _require(
        not (inputs.image and getattr(inputs, conflicting)), "image", f"cannot be combined with {conflicting}"
    )
    _require(
        params.refine or task == "refine" or not params.spatial_refine_only,
        "spatial_refine_only",
        "needs refine",
    )
    _require(params.refine or task == "refine" or params.t_thresh is None, "t_thresh", "needs refine")
    if task == "refine":
        _require(params.resolution is None, "resolution", "is determined by the clip that is refined")
        _require(not params.distilled, "distilled", "has no meaning for refine")
        _require(params.quality == "exact", "quality", "refine is always exact")
        _require(inputs.num_prompts == 1, "prompts", "refine takes one prompt")


def _resolve_size(params: GenerationParams, inputs: Inputs, limits: Limits) -> Size:
    _require(
        (params.height is None) == (params.width is None),
        "height" if params.height is None else "width",
        "height and width must be given together",
    )
    if params.height is not None and params.width is not None:
        _require(params.resolution is None, "resolution", "cannot be combined with height and width")
        return _check_size(Size(params.height, params.width), limits)
    start = inputs.image or inputs.video
    if params.resolution is None and start is None:
        return limits.default_size
    resolution = next(iter(limits.buckets)) if params.resolution is None else params.resolution
    _require(resolution in limits.buckets, "resolution", f"must be one of {', '.join(limits.buckets)}")
    return nearest_bucket(limits.buckets[resolution], *(start or limits.default_size)[:2])


def _check_size(size: Size, limits: Limits) -> Size:
    for field, side in zip(size._fields, size, strict=True):
        _require(side % SIDE_MULTIPLE == 0, field, f"must be a multiple of {SIDE_MULTIPLE}")
        _require(side >= limits.min_side, field, f"must be at least {limits.min_side}")
    pixels = size.height * size.width
    _require(
        pixels <= limits.max_pixels,
        "height",
        f"height × width must be at most {limits.max_pixels}, is {pixels}",
    )
    if limits.only_buckets:
        names = ", ".join(f"{height}×{width}" for height, width in limits.sizes)
        _require(size in limits.sizes, "height", f"height × width must be one of {names}")
    return size


def _resolve_num_frames(params: GenerationParams, inputs: Inputs, limits: Limits) -> int:
    num_frames = limits.default_num_frames if params.num_frames is None else params.num_frames
    _require(
        1 <= num_frames <= limits.max_num_frames,
        "num_frames",
        f"must be between 1 and {limits.max_num_frames}",
    )
    _require(num_frames % FRAME_STRIDE == 1, "num_frames", "must be one more than a multiple of 4")
    _require(num_frames > 1 or not inputs.image, "num_frames", "must be more than 1 with an image")
    return num_frames


def _resolve_num_segments(task: Task, params: GenerationParams, inputs: Inputs, limits: Limits) -> int:
    segments = inputs.num_prompts if params.num_segments is None else params.num_segments
    most = limits.max_num_segments if task == "long_video" else 1
    field = "prompts" if params.num_segments is None else "num_segments"
    allowed = "one segment" if most == 1 else f"between 1 and {most} segments"
    _require(1 <= segments <= most, field, f"{task} has {allowed}")
    _require(
        inputs.num_prompts in (1, segments), "prompts", f"must be one, or one for each of {segments} segments"
    )
    return segments


def _resolve_num_condition_frames(
    params: GenerationParams, inputs: Inputs, num_frames: int, segments: int, limits: Limits
) -> int:
    field = "num_condition_frames"
    if segments == 1 and not inputs.video:
        _require(not params.num_condition_frames, field, "needs a clip or several segments")
        return 0
    condition = (
        limits.num_condition_frames if params.num_condition_frames is None else params.num_condition_frames
    )
    _require(
        1 <= condition < num_frames, field, f"must be at least 1 and less than num_frames ({num_frames})"
    )
    _require(condition % FRAME_STRIDE == 1, field, "must be one more than a multiple of 4")
    if inputs.video:
        most = inputs.video.num_frames
        _require(condition <= most, field, f"must be at most {most}, the number of frames of the clip")
    return condition


def _resolve_num_steps(params: GenerationParams, limits: Limits) -> int:
    default = limits.distilled_num_inference_steps if params.distilled else limits.num_inference_steps
    most = limits.max_num_inference_steps
    if params.distilled:
        most = min(most, DISTILLED_SCHEDULE_STEPS)
    steps = default if params.num_inference_steps is None else params.num_inference_steps
    _require(1 <= steps <= most, "num_inference_steps", f"must be between 1 and {most}")
    return steps


def _resolve_guidance_scale(params: GenerationParams, limits: Limits) -> float:
    most = limits.max_guidance_scale
    default = 1.0 if params.distilled else limits.guidance_scale
    scale = default if params.guidance_scale is None else params.guidance_scale
    _require(scale == 1.0 or not params.distilled, "guidance_scale", "must be 1 (off) with distilled")
    _require(1.0 <= scale <= most, "guidance_scale", f"must be between 1 (off) and {most:g}")
    return scale


def _resolve_step_cache(
    params: GenerationParams, guidance_scale: float, threshold: float | None
) -> float | None:
    """Return the threshold of the step cache. It needs many similar steps, which distilled videos lack."""
    if params.quality == "exact":
        return None
    _require(guidance_scale > 1.0, "quality", "balanced needs a guidance_scale above 1")
    _require(threshold is not None, "quality", "balanced is not available")
    _require(threshold is None or 0.0 < threshold < 1.0, "step_cache", "must be between 0 and 1")
    return threshold


def _resolve_num_held(params: GenerationParams, inputs: Inputs, limits: Limits) -> int:
    """Return how many frames of a refined clip are held to a condition. At least one other must remain."""
    assert inputs.video
    most = inputs.video.num_frames * (1 if params.spatial_refine_only else 2) - 1
    if not inputs.condition_video:
        _require(not params.num_condition_frames, "num_condition_frames", "needs a condition_video")
        _require(most > 0 or not inputs.image, "video", "must have more than one frame with an image")
        return 1 if inputs.image else 0
    most = min(most, inputs.condition_video.num_frames)
    held = limits.num_condition_frames if params.num_condition_frames is None else params.num_condition_frames
    _require(1 <= held <= most, "num_condition_frames", f"must be between 1 and {most}")
    return held


def _resolve_refinement(
    params: GenerationParams, size: Size, num_steps: int, num_held: int, limits: Limits
) -> Refinement:
    """Return the second stage. Its size is that of the table nearest to the shape of the base video."""
    t_thresh = T_THRESH if params.t_thresh is None else params.t_thresh
    _require(0.0 < t_thresh <= 1.0, "t_thresh", "must be above 0 and at most 1")
    target = nearest_bucket(limits.refine_buckets, *size)
    return Refinement(
        height=target.height,
        width=target.width,
        num_inference_steps=num_steps,
        t_thresh=t_thresh,
        spatial_only=params.spatial_refine_only,
        num_held=num_held,
    )


def _require(is_valid: bool, field: str, rule: str) -> None:
    if not is_valid:
        raise InvalidParams(field, rule)
