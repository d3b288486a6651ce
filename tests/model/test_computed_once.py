"""What jobs and segments of one shape share is computed once, and lies on the device."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from model import tokens
from model.parallel import ContextParallel
from model.pipeline import Pipeline
from model.plan import Wish
from model.request import Latents, Request
from model.shapes import settle
from model.state import State


@pytest.fixture
def pipeline(tiny_checkpoint) -> Pipeline:
    return Pipeline.load(tiny_checkpoint, torch.float32)


def request_of(pipeline, **wish) -> Request:
    return Request(settle(Wish(num_frames=9, num_inference_steps=1, **wish), pipeline.limits), ("a",), seed=5)


def counting(calls, function, key):
    def counted(*arguments):
        calls[key(*arguments)] += 1
        return function(*arguments)

    return counted


def test_texts_are_read_once_and_shapes_laid_out_once(pipeline, monkeypatch):
    """Five segments of two shapes in two jobs, with two prompts."""
    encoder = pipeline.encoders.text
    shapes, prompts = Counter(), Counter()
    monkeypatch.setattr(tokens, "angles_3d", counting(shapes, tokens.angles_3d, lambda *shape: shape))
    monkeypatch.setattr(encoder, "_compute", counting(prompts, encoder._compute, lambda prompt: prompt))
    next(event for event in pipeline.generate(request_of(pipeline)) if isinstance(event, Latents))
    for _ in pipeline.generate(request_of(pipeline, num_segments=4, num_condition_frames=5)):
        pass
    assert list(prompts.values()) == [1, 1]
    assert list(shapes.values()) == [1, 1, 1]  # all frames; clean ones to remember, and noise after them


def test_what_the_leader_made_is_brought_onto_the_device(pipeline):
    """Alone as in a group: schedules and random numbers are made on the CPU."""
    elsewhere = ContextParallel(torch.device("meta"))
    request, state, encoders = request_of(pipeline), State.begin(1), pipeline.encoders
    begun = elsewhere.from_leader(lambda: encoders.begin(request, state, None))
    state = replace(state, latents=begun.noise, clean=begun.noise[:, :, :0])
    made = elsewhere.from_leader(lambda: encoders.condition(request, state))
    tensors = [x for x in (*vars(begun).values(), *vars(made).values()) if isinstance(x, torch.Tensor)]
    assert len(tensors) == 8
    assert {x.device.type for x in tensors} == {"meta"}
