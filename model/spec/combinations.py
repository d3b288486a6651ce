"""Find out whether options contradict each other, before their files and the checkpoint are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from model.spec.errors import InvalidParams
from model.spec.geometry import FRAME_STRIDE, SIDE_MULTIPLE, Clip, Size
from model.spec.limits import Limits
from model.spec.params import MAX_COUNT, GenerationParams, Task
from model.spec.plan import Plan
from model.spec.resolve import INPUTS, Inputs, resolve

_MANY_FRAMES = MAX_COUNT // FRAME_STRIDE * FRAME_STRIDE - FRAME_STRIDE + 1
_ANY_SIDE = 4 * SIDE_MULTIPLE
_ANY_THRESHOLD = 0.5
_INFERRED: tuple[Task, ...] = ("long_video", "video_continuation", "image_to_video", "text_to_video")
"""Tasks of requests that name none. What uses most options comes first: its error tells most."""


def possible_plan(params: GenerationParams, num_prompts: int = 1) -> Plan:
    """Return a plan of some request with these options, of a checkpoint with wide limits.

    Options that are absent, and files, may have any value. Raises InvalidParams if there is no such request.
    """
    errors = []
    limits = _wide_limits(params)
    for completed in _completions(params):
        for inputs in _possible_inputs(completed, num_prompts):
            try:
                return resolve(completed, inputs, limits, step_cache=_ANY_THRESHOLD)
            except InvalidParams as error:
                errors.append(error)
    raise errors[0]


def _completions(params: GenerationParams) -> Iterator[GenerationParams]:
    """Yield the options with others that they need, for each task that they may be for."""
    needed: dict[str, object] = {}
    if params.height is None and params.width is not None:
        needed["height"] = _ANY_SIDE
    if params.width is None and params.height is not None:
        needed["width"] = _ANY_SIDE
    if "refine" not in params.model_fields_set:
        needed["refine"] = params.spatial_refine_only or params.t_thresh is not None
    for task in (params.task,) if params.task else _INFERRED:
        yield params.model_copy(update={**needed, "task": task})


def _possible_inputs(params: GenerationParams, num_prompts: int) -> Iterator[Inputs]:
    """Yield the combinations of files that the task can have."""
    assert params.task
    size = Size(params.height or _ANY_SIDE, params.width or _ANY_SIDE)
    clip = Clip(*size, _MANY_FRAMES)
    refined = Clip(*size, params.num_frames or _MANY_FRAMES)
    required, allowed = INPUTS[params.task]
    for others in (*({one} for one in sorted(allowed, reverse=True)), set[str]()):
        given = required | others
        yield Inputs(
            num_prompts,
            image=size if "image" in given else None,
            video=(refined if params.task == "refine" else clip) if "video" in given else None,
            condition_video=clip if "condition_video" in given else None,
        )


def _wide_limits(params: GenerationParams) -> Limits:
    """Return limits that refuse only what every checkpoint would."""
    return replace(
        Limits.from_json({}),
        buckets={params.resolution or "": {"1.00": Size(_ANY_SIDE, _ANY_SIDE)}},
        min_side=SIDE_MULTIPLE,
        max_pixels=MAX_COUNT**2,
        only_buckets=False,
        default_num_frames=_MANY_FRAMES,
        max_num_frames=MAX_COUNT,
        max_num_segments=MAX_COUNT,
        num_condition_frames=1,
        max_num_inference_steps=MAX_COUNT,
        max_guidance_scale=float(MAX_COUNT),
    )
