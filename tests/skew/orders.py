"""Request bodies of jobs of every task, which the tiny checkpoint generates in seconds."""

from __future__ import annotations

import base64
from typing import Any

from tests.service.media import clip, encoded, picture

Body = dict[str, Any]

_SHORT = {"num_frames": 5, "num_inference_steps": 12, "guidance_scale": 1.0, "seed": 7}


def every_task() -> dict[str, Body]:
    """Return a body for each task, and one for each option that changes what a worker does."""
    image = {"base64": base64.b64encode(encoded(picture())).decode()}
    video = {"base64": base64.b64encode(clip(num_frames=9)).decode()}
    small = {"base64": base64.b64encode(clip(num_frames=5)).decode()}
    of_task: dict[str, Body] = {
        "text_to_video": {"prompt": "a cat"},
        "image_to_video": {"prompt": "a cat", "image": image},
        "video_continuation": {"prompt": "a cat", "video": video, "num_frames": 9},
        "long_video": {"prompts": ["a cat", "a dog"], "num_segments": 2, "num_frames": 9},
        "refine": {"task": "refine", "prompt": "a cat", "video": small},
        "refined": {"prompt": "a cat", "refine": True, "spatial_refine_only": True},
        "guided": {"prompt": "a cat", "guidance_scale": 4.0, "negative_prompt": "blurry"},
        "distilled": {"prompt": "a cat", "distilled": True},
    }
    return {name: _complete(name, body) for name, body in of_task.items()}


def long_running(seed: int = 1) -> Body:
    """Return a job whose denoising takes several seconds."""
    return {**_SHORT, "prompt": "a slow cat", "num_inference_steps": 50, "seed": seed}


def _complete(name: str, body: Body) -> Body:
    complete = {**_SHORT, **body, "metadata": {"name": name}}
    if name == "distilled":  # has steps and guidance of its own
        del complete["num_inference_steps"], complete["guidance_scale"]
    if name == "refine":  # takes the whole clip
        del complete["num_frames"], complete["guidance_scale"]
    return complete
