"""Name typical videos of a checkpoint, for predictions of what fits into a GPU."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress

from model.spec.errors import InvalidParams
from model.spec.geometry import Clip, Size
from model.spec.limits import Limits
from model.spec.params import GenerationParams
from model.spec.plan import DISTILLED_LORA, REFINEMENT_LORA, Plan
from model.spec.resolve import Inputs, resolve


def typical_plans(limits: Limits, loras: Collection[str]) -> Iterator[tuple[str, Plan]]:
    """Yield the name and the plan of typical videos, without those that the checkpoint does not make.

    They have the default size and length; one has the largest size by name.
    """
    size, num_frames = limits.default_size, limits.default_num_frames
    clip = Clip(size.height, size.width, num_frames)
    refined = max(
        limits.refine_buckets.values(), key=lambda bucket: bucket.height * bucket.width, default=size
    )
    requests: list[tuple[str, GenerationParams, Inputs]] = [
        ("text to video", GenerationParams(), Inputs()),
        ("image to video", GenerationParams(), Inputs(image=Size(*size))),
        ("continuation of a clip", GenerationParams(), Inputs(video=clip)),
    ]
    if len(limits.buckets) > 1:
        largest = max(limits.buckets, key=lambda name: _largest_area(limits, name))
        requests.append((f"text to video, {largest}", GenerationParams(resolution=largest), Inputs()))
    if DISTILLED_LORA in loras:
        requests.append(("text to video, distilled", GenerationParams(distilled=True), Inputs()))
    if REFINEMENT_LORA in loras:
        requests.append(("text to video, refined", GenerationParams(refine=True), Inputs()))
        requests.append(
            (
                f"refinement to {refined.width}×{refined.height}",
                GenerationParams(task="refine"),
                Inputs(video=clip),
            )
        )
    for name, params, inputs in requests:
        with suppress(InvalidParams):
            yield name, resolve(params, inputs, limits)


def _largest_area(limits: Limits, resolution: str) -> int:
    return max(size.height * size.width for size in limits.buckets[resolution].values())
