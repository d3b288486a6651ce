"""The dataset is the one that the shipped checkpoint was trained on and is measured with.

Discrete values are compared by hash. Rendered values may differ in the last bits between processors, so that
their statistics are compared.
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from training.captions import parse_caption, random_caption
from training.evaluation import TASKS, Trial
from training.latents import GROUP_SIZE, LatentDataset, clip_latents, clip_scene
from training.scenes import draw, place, random_scene
from training.text import batch
from training.tokenizer import build_tokenizer
from training.transformer import BatchSpec, sample_batch

TIMES = torch.arange(17.0)


class IdentityEncoders:
    """Return latents and captions unchanged."""

    def normalise(self, latents):
        return latents

    def encode_text(self, captions):
        return captions


def digest(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def placed_values(placed):
    """Return a scene's values in the order of its fields; positions to 0.01 pixels."""
    scene = placed.scene
    objects = [list(asdict(obj).values()) for obj in scene.objects]
    centres = [[round(x, 2) for x in centre] for centre in placed.centres]
    return [objects, scene.background, scene.striped, centres]


def described_values(description):
    objects = [list(asdict(obj).values()) for obj in description.objects]
    return [objects, description.background, description.striped]


def random_placed(seed):
    random = np.random.default_rng(seed)
    scene = random_scene(random, 0.4)
    text = random_caption(scene, random)
    return text, place(scene, random)


def summary(x):
    """Return mean, deviation, and the mean product with a fixed pattern that depends on every position."""
    pattern = torch.linspace(0, 100, x.numel()).sin().view_as(x)
    return [float(x.mean()), float(x.std()), float((x * pattern).mean())]


def test_scenes_and_captions_are_unchanged():
    drawn = [random_placed(seed) for seed in range(300)]
    assert digest([placed_values(placed) for _, placed in drawn]) == "cb6262e86eb0934c"
    assert digest([text for text, _ in drawn]) == "5a2d92503be1ad80"
    assert digest([described_values(parse_caption(text)) for text, _ in drawn]) == "8ddcf5b24b188be5"


def test_dataset_is_unchanged():
    clips = [clip_scene(index) for index in range(400)]
    assert digest([[*placed_values(placed), first] for placed, first in clips]) == "c8100d4f95cc5944"


def test_training_batches_are_unchanged():
    encoders: Any = IdentityEncoders()
    count = 16 * GROUP_SIZE
    dataset = LatentDataset.of(torch.arange(float(count)).view(-1, 1, 1, 1, 1).expand(-1, 16, 1, 1, 1))
    values = []
    for seed in range(10):
        for spec in (BatchSpec(24, 2), BatchSpec(96, 4, images=True)):
            sampled = sample_batch(dataset, encoders, np.random.default_rng(seed), spec)
            clips, shared = (x[:, 0, 0, 0, 0].tolist() for x in (sampled.latents, sampled.shared_latents))
            values.append([clips, shared, sampled.num_clean, sampled.text])
    assert digest(values) == "0090cffba9fd82ca"


def test_text_batches_are_unchanged():
    assert digest([x.tolist() for x in batch(build_tokenizer(), 32, (1, 5))]) == "097f8d6d864ee8a7"


def test_trials_are_unchanged():
    trials = [Trial.from_index(index) for index in range(60)]
    assert digest([[t.prompt, placed_values(t.placed), t.seed] for t in trials]) == "0064de41744fa53d"
    prompts = [[request.prompt for request in task.requests(trials[0])] for task in TASKS.values()]
    assert digest([list(TASKS), prompts]) == "7f68960ef52ef249"


def test_rendered_frames_are_unchanged():
    frames = torch.stack([draw(random_placed(seed)[1], TIMES) for seed in range(20)])
    assert summary(frames) == pytest.approx([0.447940, 0.324288, -0.004285], abs=1e-5)


def test_encoded_clips_are_unchanged():
    latents = torch.stack([clip_latents(index) for index in range(0, 100, 7)])
    assert summary(latents) == pytest.approx([0.017217, 0.318188, 0.021159], abs=1e-5)
