"""Provide a small order."""

from __future__ import annotations

from jobs.order import Order

ORDER = Order(
    task="text_to_video",
    prompts=("a cat",),
    height=64,
    width=96,
    num_frames=9,
    num_segments=1,
    num_condition_frames=0,
    num_inference_steps=4,
    guidance_scale=1.0,
    distilled=False,
    condition_cache=True,
    enhance_hf=False,
    fps=15,
    seed=1,
)
