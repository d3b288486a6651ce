"""Resolve the parameters of a request to a plan, or refuse them.

The service does this before it queues a job, and the command line before it loads a model, so both refuse the
same requests for the same reasons. What is valid depends on the job and the checkpoint, not on the number of
GPUs.
"""

from __future__ import annotations

from model.spec.geometry import (
    FRAME_STRIDE,
    SIDE_MULTIPLE,
    Clip,
    Size,
    every_nth,
    frames_taken,
    nearest_bucket,
)
from model.spec.limits import Limits, load_limits
from model.spec.plan import GenerationParams, InvalidParams, Plan, Refinement, Task

__all__ = [
    "FRAME_STRIDE",
    "Clip",
    "GenerationParams",
    "InvalidParams",
    "Limits",
    "Plan",
    "Refinement",
    "Size",
    "Task",
    "every_nth",
    "frames_taken",
    "load_limits",
    "resolve",
]

DISTILLED_SCHEDULE_STEPS = 50  # the distilled schedule chooses its steps among these
T_THRESH = 0.5


def resolve(params: GenerationParams, limits: Limits) -> Plan:
    """Resolve parameters with the limits of a checkpoint. Raises InvalidParams."""
    task = params.task or _task_of(params)
    _check_inputs(task, params)
    if task == "refine":
        return _resolve_refine(params, limits)
    size = _size(params, limits)
    num_frames = _num_frames(params, limits)
    segments = _num_segments(task, params, limits)
    scale = _guidance_scale(params, limits)
    held = 1 if params.image else 0
    return Plan(
        task=task,
        height=size.height,
        width=size.width,
        num_frames=num_frames,
        num_segments=segments,
        num_condition_frames=_num_condition_frames(params, num_frames, segments, limits),
        num_inference_steps=_num_steps(params, limits),
        guidance_scale=scale,
        distilled=params.distilled,
        condition_cache=params.condition_cache,
        enhance_hf=params.enhance_hf and not params.distilled,
        fps=limits.fps,
        refinement=_refinement(params, size, limits.num_inference_steps, held, limits)
        if params.refine
        else None,
        step_cache=_step_cache(params, scale),
    )


def _resolve_refine(params: GenerationParams, limits: Limits) -> Plan:
    assert params.video
    clip, steps = params.video, _num_steps(params, limits)
    _check(
        clip.num_frames <= limits.max_num_frames, "video", f"must have at most {limits.max_num_frames} frames"
    )
    return Plan(
        task="refine",
        height=clip.height,
        width=clip.width,
        num_frames=clip.num_frames,
        num_segments=1,
        num_condition_frames=0,
        num_inference_steps=steps,
        guidance_scale=1.0,
        distilled=False,
        condition_cache=False,
        enhance_hf=False,
        fps=limits.fps,
        refinement=_refinement(
            params, Size(clip.height, clip.width), steps, _num_held(params, limits), limits
        ),
    )


def _task_of(params: GenerationParams) -> Task:
    if (params.num_segments or 1) > 1 or params.num_prompts > 1:
        return "long_video"
    if params.video:
        return "video_continuation"
    return "image_to_video" if params.image else "text_to_video"


_INPUTS: dict[Task, tuple[set[str], set[str]]] = {  # required, and allowed in addition
    "text_to_video": (set(), set()),
    "image_to_video": ({"image"}, set()),
    "video_continuation": ({"video"}, set()),
    "long_video": (set(), {"image", "video"}),
    "refine": ({"video"}, {"image", "condition_video"}),
}


def _check_inputs(task: Task, params: GenerationParams) -> None:
    required, allowed = _INPUTS[task]
    for field in ("image", "video", "condition_video"):
        given = getattr(params, field) is not None
        _check(given or field not in required, field, f"is required for {task}")
        _check(not given or field in required | allowed, field, f"has no meaning for {task}")
    starts = "condition_video" if task == "refine" else "video"
    _check(not (params.image and getattr(params, starts)), "image", f"cannot stand beside a {starts}")
    _check(
        params.refine or task == "refine" or not params.spatial_refine_only,
        "spatial_refine_only",
        "needs refine",
    )
    _check(params.refine or task == "refine" or params.t_thresh is None, "t_thresh", "needs refine")
    if task == "refine":
        for field in ("resolution", "height", "width", "num_frames", "num_segments", "guidance_scale"):
            _check(getattr(params, field) is None, field, "is settled by the clip that is refined")
        _check(not params.distilled, "distilled", "has no meaning for refine")
        _check(params.step_cache is None, "quality", "refine is always exact")
        _check(params.num_prompts == 1, "prompts", "refine takes one prompt")


def _size(params: GenerationParams, limits: Limits) -> Size:
    _check(
        (params.height is None) == (params.width is None),
        "height" if params.height is None else "width",
        "needs its pair",
    )
    if params.height is not None and params.width is not None:
        _check(params.resolution is None, "resolution", "cannot stand beside height and width")
        return _check_size(Size(params.height, params.width), limits)
    start = params.image or params.video
    if params.resolution is None and start is None:
        return limits.default_size
    resolution = params.resolution or next(iter(limits.buckets))
    _check(resolution in limits.buckets, "resolution", f"must be one of {', '.join(limits.buckets)}")
    return nearest_bucket(limits.buckets[resolution], *(start or limits.default_size)[:2])


def _check_size(size: Size, limits: Limits) -> Size:
    for field, side in zip(size._fields, size, strict=True):
        _check(side % SIDE_MULTIPLE == 0, field, f"must be a multiple of {SIDE_MULTIPLE}")
        _check(side >= limits.min_side, field, f"must be at least {limits.min_side}")
    pixels = size.height * size.width
    _check(
        pixels <= limits.max_pixels,
        "height",
        f"height × width must be at most {limits.max_pixels}, is {pixels}",
    )
    if limits.only_buckets:
        known = dict.fromkeys(known for table in limits.buckets.values() for known in table.values())
        names = ", ".join(f"{height}×{width}" for height, width in known)
        _check(size in known, "height", f"height × width must be one of {names}")
    return size


def _num_frames(params: GenerationParams, limits: Limits) -> int:
    num_frames = limits.default_num_frames if params.num_frames is None else params.num_frames
    _check(
        1 <= num_frames <= limits.max_num_frames,
        "num_frames",
        f"must be between 1 and {limits.max_num_frames}",
    )
    _check(num_frames % FRAME_STRIDE == 1, "num_frames", "must be 4k + 1")
    _check(num_frames > 1 or not params.image, "num_frames", "must be more than the image's own")
    return num_frames


def _num_segments(task: Task, params: GenerationParams, limits: Limits) -> int:
    segments = params.num_prompts if params.num_segments is None else params.num_segments
    most = limits.max_num_segments if task == "long_video" else 1
    field = "prompts" if params.num_segments is None else "num_segments"
    _check(1 <= segments <= most, field, f"{task} has between 1 and {most}")
    _check(
        params.num_prompts in (1, segments), "prompts", f"must be one, or one for each of {segments} segments"
    )
    return segments


def _num_condition_frames(params: GenerationParams, num_frames: int, segments: int, limits: Limits) -> int:
    field = "num_condition_frames"
    if segments == 1 and not params.video:
        _check(params.num_condition_frames is None, field, "needs a clip or several segments")
        return 0
    condition = (
        limits.num_condition_frames if params.num_condition_frames is None else params.num_condition_frames
    )
    _check(1 <= condition < num_frames, field, f"must be at least 1 and less than num_frames ({num_frames})")
    _check(condition % FRAME_STRIDE == 1, field, "must be 4k + 1")
    if params.video:
        _check(
            condition <= params.video.num_frames, field, f"the clip has only {params.video.num_frames} frames"
        )
    return condition


def _num_steps(params: GenerationParams, limits: Limits) -> int:
    default = limits.distilled_num_inference_steps if params.distilled else limits.num_inference_steps
    most = min(limits.max_num_inference_steps, DISTILLED_SCHEDULE_STEPS if params.distilled else 1 << 30)
    steps = default if params.num_inference_steps is None else params.num_inference_steps
    _check(1 <= steps <= most, "num_inference_steps", f"must be between 1 and {most}")
    return steps


def _guidance_scale(params: GenerationParams, limits: Limits) -> float:
    most = 1.0 if params.distilled else limits.max_guidance_scale
    default = 1.0 if params.distilled else limits.guidance_scale
    scale = default if params.guidance_scale is None else params.guidance_scale
    _check(1.0 <= scale <= most, "guidance_scale", f"must be between 1 (off) and {most:g}")
    return scale


def _step_cache(params: GenerationParams, guidance_scale: float) -> float | None:
    """Return the threshold of the step cache. It needs many similar steps, which distilled videos lack."""
    if params.step_cache is not None:
        _check(guidance_scale > 1.0, "quality", "balanced needs a guidance_scale above 1")
        _check(0.0 < params.step_cache < 1.0, "step_cache", "must be between 0 and 1")
    return params.step_cache


def _num_held(params: GenerationParams, limits: Limits) -> int:
    """Return how many frames of a refined clip are held to a condition. At least one other must remain."""
    assert params.video
    most = params.video.num_frames * (1 if params.spatial_refine_only else 2) - 1
    if not params.condition_video:
        _check(params.num_condition_frames is None, "num_condition_frames", "needs a condition clip")
        _check(most > 0 or not params.image, "video", "must have more frames than the image that holds it")
        return 1 if params.image else 0
    most = min(most, params.condition_video.num_frames)
    held = limits.num_condition_frames if params.num_condition_frames is None else params.num_condition_frames
    _check(1 <= held <= most, "num_condition_frames", f"must be between 1 and {most}")
    return held


def _refinement(params: GenerationParams, size: Size, steps: int, held: int, limits: Limits) -> Refinement:
    t_thresh = T_THRESH if params.t_thresh is None else params.t_thresh
    _check(0.0 < t_thresh <= 1.0, "t_thresh", "must be above 0 and at most 1")
    target = nearest_bucket(limits.refine_buckets, *size)
    return Refinement(target.height, target.width, steps, t_thresh, params.spatial_refine_only, held)


def _check(is_valid: bool, field: str, rule: str) -> None:
    if not is_valid:
        raise InvalidParams(field, rule)
