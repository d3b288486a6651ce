"""Provide a small order."""

from __future__ import annotations

from tests.orders import make_order

ORDER = make_order(
    prompts=("a cat",),
    negative_prompt=None,
    height=64,
    width=96,
    num_frames=9,
    num_inference_steps=4,
    guidance_scale=1.0,
    enhance_hf=False,
    seed=1,
)
