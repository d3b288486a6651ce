"""The field `request` of a job: its JSON is a public contract, held here key for key."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.media import clip, encoded, in_base64, picture

IMAGE = {"base64": in_base64(encoded(picture()))}
CLIP = {"base64": in_base64(clip(17))}
DEFAULT: dict[str, Any] = {
    "task": "text_to_video",
    "model": None,
    "prompt": "a red ball",
    "prompts": None,
    "negative_prompt": "blurred",
    "image": None,
    "video": None,
    "condition_video": None,
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "num_segments": 1,
    "num_condition_frames": 0,
    "num_inference_steps": 4,
    "guidance_scale": 4.0,
    "distilled": False,
    "quality": "exact",
    "condition_cache": True,
    "enhance_hf": True,
    "refine": False,
    "refinement": None,
    "t_thresh": None,
    "spatial_refine_only": False,
    "fps": 15,
    "seed": 7,
    "priority": "normal",
    "deadline_s": None,
    "webhook_url": None,
    "webhook_events": None,
}
WEBHOOK = {"webhook_url": "https://example.com/hook", "webhook_events": ["succeeded"]}
REFINEMENT = {
    "height": 128,
    "width": 192,
    "num_inference_steps": 4,
    "t_thresh": 0.5,
    "spatial_only": False,
    "num_held": 0,
}
DISTILLED = {"distilled": True, "num_inference_steps": 2, "guidance_scale": 1.0, "negative_prompt": None}
UPLOADED = {"source_job_id": None, "source_frame": None}
IMAGE_VIEW = {"media_type": "image/png", "width": 96, "height": 64, "num_frames": 1, **UPLOADED}
CLIP_VIEW = {"media_type": "video/mp4", "width": 96, "height": 64, "num_frames": 17, **UPLOADED}
REFINED_CLIP = {
    "guidance_scale": 1.0,
    "negative_prompt": None,
    "condition_cache": False,
    "enhance_hf": False,
    "refinement": REFINEMENT,
    "t_thresh": 0.5,
}


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ({}, {}),
        ({"priority": "low", **WEBHOOK}, {"priority": "low", **WEBHOOK}),
        ({"distilled": True}, DISTILLED | {"enhance_hf": False}),
        ({"refine": True}, {"refine": True, "refinement": REFINEMENT, "t_thresh": 0.5}),
        (
            {"refine": True, "t_thresh": 0.25, "spatial_refine_only": True},
            {
                "refine": True,
                "t_thresh": 0.25,
                "spatial_refine_only": True,
                "refinement": REFINEMENT | {"t_thresh": 0.25, "spatial_only": True},
            },
        ),
        (
            {"prompt": None, "prompts": ["one", "two"], "condition_cache": False, "enhance_hf": False},
            {
                "task": "long_video",
                "prompt": None,
                "prompts": ["one", "two"],
                "num_segments": 2,
                "num_condition_frames": 5,
                "condition_cache": False,
                "enhance_hf": False,
            },
        ),
        ({"image": IMAGE}, {"task": "image_to_video", "image": IMAGE_VIEW}),
        (
            {"video": CLIP},
            {"task": "video_continuation", "video": CLIP_VIEW, "num_condition_frames": 5},
        ),
        ({"task": "refine", "video": CLIP}, {"task": "refine", "video": CLIP_VIEW, **REFINED_CLIP}),
    ],
)
def test_shows_every_option_as_it_was_resolved(client, body, changes):
    sent = {"prompt": "a red ball", "seed": 7, **body}
    answer = client.post("/generate", json={name: value for name, value in sent.items() if value is not None})
    shown = answer.json()["request"]
    for name in ("image", "video", "condition_video"):
        if shown[name]:
            assert shown[name].pop("job_id") == answer.json()["id"]
            assert shown[name].pop("size_bytes") > 0
            assert len(shown[name].pop("sha256")) == 64
    assert shown == DEFAULT | changes
