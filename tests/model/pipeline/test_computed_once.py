"""What jobs and segments share is computed once, and lies on the device."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch

from model.parallel.broadcast import from_leader
from model.parallel.mesh import SINGLE, ContextParallel
from model.pipeline.events import Latents, SegmentDone, Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.state import State
from model.pipeline.text_cache import TextKVCache
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve


@pytest.fixture
def pipeline(tiny_checkpoint) -> Pipeline:
    return Pipeline.load(tiny_checkpoint, torch.float32)


def request_of(pipeline, **options) -> Request:
    params = GenerationParams(num_frames=9, num_inference_steps=1, enhance_hf=False, **options)
    return Request(resolve(params, Inputs(), pipeline.limits), ("a",), seed=5)


def test_prompts_are_encoded_once(pipeline, monkeypatch):
    """Five segments in two jobs, with two prompts."""
    encoder = pipeline.conditioner.text
    compute = encoder._compute
    prompts: Counter[str] = Counter()

    def counted(prompt):
        prompts[prompt] += 1
        return compute(prompt)

    monkeypatch.setattr(encoder, "_compute", counted)
    next(event for event in pipeline.generate(request_of(pipeline)) if isinstance(event, Latents))
    for _ in pipeline.generate(request_of(pipeline, num_segments=4, num_condition_frames=5)):
        pass
    assert list(prompts.values()) == [1, 1]


def test_positions_of_a_stage_are_freed_when_it_ends(pipeline):
    """Else those of earlier sizes would take memory that a later job was promised."""
    rotations = []

    def record(_, arguments) -> None:
        _, _, layout, *_ = arguments
        rotations.append(weakref.ref(layout.rotation))

    pipeline.dit.blocks[0].register_forward_pre_hook(record)
    alive = [
        [rotation() is not None for rotation in rotations]
        for event in pipeline.generate(request_of(pipeline, num_segments=2, num_condition_frames=5))
        if isinstance(event, Stepped | SegmentDone)
    ]
    # All frames; then those of the condition, which are cached, and the noise after them.
    assert alive == [[True], [False], [False, False, True], [False, False, False]]


def test_offloaded_text_encoder_changes_no_bit_of_a_long_video(tiny_checkpoint, pipeline):
    offloaded = Pipeline.load(tiny_checkpoint, torch.float32, text_encoder="offload")
    request = request_of(pipeline, num_segments=2, num_condition_frames=5)
    request = replace(request, prompts=("a", "b"))
    found = [event.latents for event in offloaded.generate(request) if isinstance(event, Latents)]
    expected = [event.latents for event in pipeline.generate(request) if isinstance(event, Latents)]
    assert len(found) == 2
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_prompt_is_projected_once_for_all_segments_of_a_job(pipeline):
    projected: Counter[str] = Counter()
    pipeline.dit.y_embedder.register_forward_hook(lambda *_: projected.update(["times"]))
    for _ in pipeline.generate(request_of(pipeline, num_segments=2, num_condition_frames=5)):
        pass
    assert projected["times"] == 1


class TestTextKVCache:
    @pytest.fixture
    def project(self, pipeline):
        """Project a text while a LoRA is merged."""
        cache = TextKVCache()
        return lambda lora, text: cache.for_lora(lora)(pipeline.dit, SINGLE, *text)

    @pytest.fixture
    def text(self, pipeline):
        width = pipeline.dit.config.caption_channels

        def text(value=1.0, present=2):
            return torch.full((1, 3, width), value), (torch.arange(3)[None] < present).int()

        return text

    def test_equal_texts_are_projected_once(self, project, text):
        assert project(None, text()) is project(None, text())

    @pytest.mark.parametrize("other", [{"value": 2.0}, {"present": 3}])
    def test_another_text_replaces_the_entry(self, project, text, other):
        first = project(None, text())
        second, again = project(None, text(**other)), project(None, text(**other))
        third = project(None, text())
        assert second is again
        assert second is not first is not third

    def test_more_texts_are_another_entry(self, project, text):
        two = tuple(torch.cat([part, part]) for part in text())
        assert project(None, text()) is not project(None, two)

    def test_each_lora_has_its_own_entry(self, project, text):
        plain, few_steps = project(None, text()), project("a", text())
        assert plain is not few_steps
        assert (project(None, text()) is plain, project("a", text()) is few_steps) == (True, True)

    def test_entries_hold_keys_and_values_and_nothing_else(self, project, text):
        for kv in project(None, text()):
            stored = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in (kv.k, kv.v)}
            assert sum(stored.values()) == kv.k.nbytes + kv.v.nbytes


@pytest.mark.parametrize(
    ("options", "loras"),
    [
        ({}, {None}),
        ({"distilled": True}, {"cfg_step_lora"}),
        ({"refine": True}, {None, "refinement_lora"}),
        ({"distilled": True, "refine": True}, {"cfg_step_lora", "refinement_lora"}),
    ],
)
def test_job_keeps_the_text_kv_of_no_lora_that_it_does_not_merge(pipeline, options, loras):
    for lora in (None, "cfg_step_lora", "refinement_lora"):
        pipeline.text_cache._entries[lora] = None
    next(pipeline.generate(request_of(pipeline, **options)))
    assert set(pipeline.text_cache._entries) == loras


def test_tensors_of_the_leader_are_moved_to_the_device(pipeline):
    """Alone as in a group: schedules and random numbers are made on the CPU."""
    elsewhere = ContextParallel(torch.device("meta"))
    request, state, conditioner = request_of(pipeline), State.begin(1), pipeline.conditioner
    begun = from_leader(elsewhere, lambda: conditioner.stage_inputs(request, state, None))
    state = replace(state, latents=begun.noise, clean=begun.noise[:, :, :0])
    made = from_leader(elsewhere, lambda: conditioner.conditioning(request, state))
    tensors = [x for x in (*vars(begun).values(), *vars(made).values()) if isinstance(x, torch.Tensor)]
    assert len(tensors) == 8
    assert {x.device.type for x in tensors} == {"meta"}
