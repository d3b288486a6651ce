"""Name typical videos of a checkpoint, for predictions of what fits into a GPU."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress

from model.spec.errors import InvalidParams
from model.spec.geometry import Clip
from model.spec.limits import Limits
from model.spec.params import GenerationParams
from model.spec.plan import DISTILLED_LORA, REFINEMENT_LORA, Plan
from model.spec.resolve import Inputs, resolve

_ANY_THRESHOLD = 0.1
"""A threshold of the step cache. Memory does not depend on it."""


def typical_plans(limits: Limits, loras: Collection[str]) -> Iterator[tuple[str, Plan]]:
    """Yield the name and the plan of typical videos, without those that the checkpoint does not make.

    They have the default size and length; two have the largest size by name, one of them with a step cache.
    """
    requests = [
        ("text to video", GenerationParams()),
        ("image to video", GenerationParams(task="image_to_video")),
        ("continuation of a clip", GenerationParams(task="video_continuation")),
    ]
    if len(limits.buckets) > 1:
        largest = max(limits.buckets, key=lambda name: _largest_area(limits, name))
        exact = GenerationParams(resolution=largest)
        balanced = exact.model_copy(update={"quality": "balanced"})
        requests.append((f"text to video, {largest}", exact))
        requests.append((f"text to video, {largest}, balanced", balanced))
    if DISTILLED_LORA in loras:
        requests.append(("text to video, distilled", GenerationParams(distilled=True)))
    if REFINEMENT_LORA in loras:
        requests.append(("text to video, refined", GenerationParams(refine=True)))
        requests.append(("refinement of a clip", GenerationParams(task="refine")))
    for name, params in requests:
        with suppress(InvalidParams):
            inputs = typical_inputs(params, limits)
            yield name, resolve(params, inputs, limits, step_cache=_ANY_THRESHOLD)


def typical_inputs(params: GenerationParams, limits: Limits) -> Inputs:
    """Return the inputs that a request for a task has: an image or a clip of the default size and length."""
    size = limits.default_size
    clip = Clip(size.height, size.width, limits.default_num_frames)
    return Inputs(
        image=size if params.task == "image_to_video" else None,
        video=clip if params.task in {"video_continuation", "refine"} else None,
    )


def _largest_area(limits: Limits, resolution: str) -> int:
    return max(size.height * size.width for size in limits.buckets[resolution].values())
