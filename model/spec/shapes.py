"""From a wish to a plan: sizes, frames, steps and segments, settled or refused. No torch.

The service calls `settle` before it queues a job and the command line calls it before it loads a
model, so both refuse the same wishes for the same reasons. It knows nothing of the number of GPUs:
what is legal is a property of the job and of the checkpoint (`model.limits`).
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
from model.spec.plan import Illegal, Plan, Refinement, Task, Wish

__all__ = [
    "FRAME_STRIDE",
    "Clip",
    "Illegal",
    "Limits",
    "Plan",
    "Refinement",
    "Size",
    "Task",
    "Wish",
    "every_nth",
    "frames_taken",
    "load_limits",
    "settle",
]

DISTILLED_SCHEDULE_STEPS = 50  # the distilled schedule picks its steps among so many
T_THRESH = 0.5


def settle(wish: Wish, limits: Limits) -> Plan:
    """Resolve a wish against a checkpoint's limits. Raises Illegal, naming the field and the rule."""
    task = wish.task or _task_of(wish)
    _check_inputs(task, wish)
    if task == "refine":
        return _settle_refine(wish, limits)
    size = _size(wish, limits)
    num_frames = _num_frames(wish, limits)
    segments = _num_segments(task, wish, limits)
    scale = _guidance_scale(wish, limits)
    held = 1 if wish.image else 0
    return Plan(
        task=task,
        height=size.height,
        width=size.width,
        num_frames=num_frames,
        num_segments=segments,
        num_condition_frames=_num_condition_frames(wish, num_frames, segments, limits),
        num_inference_steps=_num_steps(wish, limits),
        guidance_scale=scale,
        distilled=wish.distilled,
        condition_cache=wish.condition_cache,
        enhance_hf=wish.enhance_hf and not wish.distilled,
        fps=limits.fps,
        refinement=_refinement(wish, size, limits.num_inference_steps, held, limits) if wish.refine else None,
        step_cache=_step_cache(wish, scale),
    )


def _settle_refine(wish: Wish, limits: Limits) -> Plan:
    assert wish.video
    clip, steps = wish.video, _num_steps(wish, limits)
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
        refinement=_refinement(wish, Size(clip.height, clip.width), steps, _num_held(wish, limits), limits),
    )


def _task_of(wish: Wish) -> Task:
    if (wish.num_segments or 1) > 1 or wish.num_prompts > 1:
        return "long_video"
    if wish.video:
        return "video_continuation"
    return "image_to_video" if wish.image else "text_to_video"


_INPUTS: dict[Task, tuple[set[str], set[str]]] = {  # required, and allowed beside them
    "text_to_video": (set(), set()),
    "image_to_video": ({"image"}, set()),
    "video_continuation": ({"video"}, set()),
    "long_video": (set(), {"image", "video"}),
    "refine": ({"video"}, {"image", "condition_video"}),
}


def _check_inputs(task: Task, wish: Wish) -> None:
    required, allowed = _INPUTS[task]
    for field in ("image", "video", "condition_video"):
        given = getattr(wish, field) is not None
        _check(given or field not in required, field, f"is required for {task}")
        _check(not given or field in required | allowed, field, f"has no meaning for {task}")
    starts = "condition_video" if task == "refine" else "video"
    _check(not (wish.image and getattr(wish, starts)), "image", f"cannot stand beside a {starts}")
    _check(
        wish.refine or task == "refine" or not wish.spatial_refine_only, "spatial_refine_only", "needs refine"
    )
    _check(wish.refine or task == "refine" or wish.t_thresh is None, "t_thresh", "needs refine")
    if task == "refine":
        for field in ("resolution", "height", "width", "num_frames", "num_segments", "guidance_scale"):
            _check(getattr(wish, field) is None, field, "is settled by the clip that is refined")
        _check(not wish.distilled, "distilled", "has no meaning for refine")
        _check(wish.step_cache is None, "quality", "refine is always exact")
        _check(wish.num_prompts == 1, "prompts", "refine takes one prompt")


def _size(wish: Wish, limits: Limits) -> Size:
    _check(
        (wish.height is None) == (wish.width is None),
        "height" if wish.height is None else "width",
        "needs its pair",
    )
    if wish.height is not None and wish.width is not None:
        _check(wish.resolution is None, "resolution", "cannot stand beside height and width")
        return _legal_size(Size(wish.height, wish.width), limits)
    start = wish.image or wish.video
    if wish.resolution is None and start is None:
        return limits.default_size
    resolution = wish.resolution or next(iter(limits.buckets))
    _check(resolution in limits.buckets, "resolution", f"must be one of {', '.join(limits.buckets)}")
    return nearest_bucket(limits.buckets[resolution], *(start or limits.default_size)[:2])


def _legal_size(size: Size, limits: Limits) -> Size:
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


def _num_frames(wish: Wish, limits: Limits) -> int:
    num_frames = limits.default_num_frames if wish.num_frames is None else wish.num_frames
    _check(
        1 <= num_frames <= limits.max_num_frames,
        "num_frames",
        f"must be between 1 and {limits.max_num_frames}",
    )
    _check(num_frames % FRAME_STRIDE == 1, "num_frames", "must be 4k + 1")
    _check(num_frames > 1 or not wish.image, "num_frames", "must be more than the image's own")
    return num_frames


def _num_segments(task: Task, wish: Wish, limits: Limits) -> int:
    segments = wish.num_prompts if wish.num_segments is None else wish.num_segments
    most = limits.max_num_segments if task == "long_video" else 1
    field = "prompts" if wish.num_segments is None else "num_segments"
    _check(1 <= segments <= most, field, f"{task} has between 1 and {most}")
    _check(
        wish.num_prompts in (1, segments), "prompts", f"must be one, or one for each of {segments} segments"
    )
    return segments


def _num_condition_frames(wish: Wish, num_frames: int, segments: int, limits: Limits) -> int:
    field = "num_condition_frames"
    if segments == 1 and not wish.video:
        _check(wish.num_condition_frames is None, field, "needs a clip or several segments")
        return 0
    condition = (
        limits.num_condition_frames if wish.num_condition_frames is None else wish.num_condition_frames
    )
    _check(1 <= condition < num_frames, field, f"must be at least 1 and less than num_frames ({num_frames})")
    _check(condition % FRAME_STRIDE == 1, field, "must be 4k + 1")
    if wish.video:
        _check(condition <= wish.video.num_frames, field, f"the clip has only {wish.video.num_frames} frames")
    return condition


def _num_steps(wish: Wish, limits: Limits) -> int:
    default = limits.distilled_num_inference_steps if wish.distilled else limits.num_inference_steps
    most = min(limits.max_num_inference_steps, DISTILLED_SCHEDULE_STEPS if wish.distilled else 1 << 30)
    steps = default if wish.num_inference_steps is None else wish.num_inference_steps
    _check(1 <= steps <= most, "num_inference_steps", f"must be between 1 and {most}")
    return steps


def _guidance_scale(wish: Wish, limits: Limits) -> float:
    most = 1.0 if wish.distilled else limits.max_guidance_scale
    default = 1.0 if wish.distilled else limits.guidance_scale
    scale = default if wish.guidance_scale is None else wish.guidance_scale
    _check(1.0 <= scale <= most, "guidance_scale", f"must be between 1 (off) and {most:g}")
    return scale


def _step_cache(wish: Wish, guidance_scale: float) -> float | None:
    """Steps resemble each other where there are many: those of guidance, not the few distilled ones."""
    if wish.step_cache is not None:
        _check(guidance_scale > 1.0, "quality", "balanced needs a guidance_scale above 1")
        _check(0.0 < wish.step_cache < 1.0, "step_cache", "must be between 0 and 1")
    return wish.step_cache


def _num_held(wish: Wish, limits: Limits) -> int:
    """Frames of a refined clip that a condition holds; at least one is left to refine."""
    assert wish.video
    most = wish.video.num_frames * (1 if wish.spatial_refine_only else 2) - 1
    if not wish.condition_video:
        _check(wish.num_condition_frames is None, "num_condition_frames", "needs a condition clip")
        _check(most > 0 or not wish.image, "video", "must have more frames than the image that holds it")
        return 1 if wish.image else 0
    most = min(most, wish.condition_video.num_frames)
    held = limits.num_condition_frames if wish.num_condition_frames is None else wish.num_condition_frames
    _check(1 <= held <= most, "num_condition_frames", f"must be between 1 and {most}")
    return held


def _refinement(wish: Wish, size: Size, steps: int, held: int, limits: Limits) -> Refinement:
    t_thresh = T_THRESH if wish.t_thresh is None else wish.t_thresh
    _check(0.0 < t_thresh <= 1.0, "t_thresh", "must be above 0 and at most 1")
    target = nearest_bucket(limits.refine_buckets, *size)
    return Refinement(target.height, target.width, steps, t_thresh, wish.spatial_refine_only, held)


def _check(legal: bool, field: str, rule: str) -> None:
    if not legal:
        raise Illegal(field, rule)
