"""Draw the orders of a campaign: a few different small videos, each ordered many times."""

from __future__ import annotations

import base64
import io
import random
from typing import Any

import numpy as np
from PIL import Image

Body = dict[str, Any]

POISON = "poison"  # a prompt with this word kills a rank in every attempt


def draw_videos(rng: random.Random, count: int) -> list[Body]:
    """Return `count` different orders: from a text, from an image, long ones and refined ones."""
    kinds = [_text, _long, _refined, draw_image, _long, _text]  # a campaign draws at least four
    return [
        {**kinds[i % len(kinds)](rng), "seed": rng.randrange(1 << 31), "guidance_scale": 1.0}
        for i in range(count)
    ]


def poison() -> Body:
    return {"prompt": POISON, "seed": 0}


def _text(rng: random.Random) -> Body:
    return {"prompt": _words(rng), "num_frames": rng.choice((9, 17)), "num_inference_steps": 20}


def _long(rng: random.Random) -> Body:
    segments = rng.choice((2, 3))
    prompts = [_words(rng) for _ in range(segments)]
    return {"prompts": prompts, "num_segments": segments, "num_frames": 9, "num_inference_steps": 10}


def draw_image(rng: random.Random) -> Body:
    """Return an order of a video from an image."""
    return {
        "prompt": _words(rng),
        "image": {"base64": _picture(rng)},
        "num_frames": 9,
        "num_inference_steps": 12,
    }


def _refined(rng: random.Random) -> Body:
    small = {
        "num_frames": 5,
        "spatial_refine_only": True,
    }  # a larger one would take most of a campaign's time
    return {"prompt": _words(rng), "refine": True, "num_inference_steps": 8, **small}


def _words(rng: random.Random) -> str:
    return " ".join(rng.choices(["red", "ball", "rain", "cat", "sea", "slow", "night", "river"], k=4))


def _picture(rng: random.Random) -> str:
    corners = np.array([rng.randrange(256) for _ in range(12)], np.uint8).reshape(2, 2, 3)
    file = io.BytesIO()
    Image.fromarray(corners).resize((96, 64), Image.Resampling.BILINEAR).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
