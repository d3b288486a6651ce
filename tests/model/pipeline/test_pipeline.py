"""Whole jobs: equal to the published ones, resumable after any step, and with constant memory."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections import Counter
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.pipeline.events import Encoded, Frames, Latents, SegmentDone, Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.state import State
from model.spec.errors import InputError
from model.spec.params import GenerationParams
from model.spec.plan import refine_layout_of
from model.spec.resolve import Inputs, resolve
from tests.model.parity_cases import PARITY, clip_of, expected_latents, request_for, size_of

QUICK = ["t2v", "t2v_prompt_cleaning", "t2v_distill"]
LONG = [
    "i2v",
    "vc",
    "vc_nokv",
    "refine",
    "refine_condition_clip",
    "refine_condition_image",
]  # a minute or so each
LATENTS_TOLERANCE = 2e-4


def final_latents(pipeline, request):
    """Latents of the last stage of a single segment; the frames are not waited for."""
    last = "refine" if request.plan.refinement else "denoise"
    return next(e.latents for e in pipeline.generate(request) if isinstance(e, Latents) and e.stage == last)


def frames_of(events):
    return torch.cat([e.frames for e in events if isinstance(e, Frames) and e.frames is not None])


def check_parity(case, pipeline):
    expected, whole, step = expected_latents(case)
    ours = final_latents(pipeline, request_for(case, pipeline.limits))
    assert tuple(ours.shape) == whole
    torch.testing.assert_close(ours[..., ::step, ::step], expected, rtol=0, atol=LATENTS_TOLERANCE)


@pytest.mark.parametrize("case", QUICK)
def test_a_job_gives_the_published_latents(case, parity_pipeline):
    check_parity(case, parity_pipeline)


@pytest.mark.soak
@pytest.mark.parametrize("case", LONG)
def test_a_job_of_released_size_gives_the_published_latents(case, parity_pipeline):
    check_parity(case, parity_pipeline)


def test_a_job_gives_the_published_frames(parity_pipeline):
    expected = load_file(PARITY / "expected" / "t2v_frames.safetensors")["frames"]
    ours = frames_of(parity_pipeline.generate(request_for("t2v", parity_pipeline.limits)))
    assert (ours.int() - expected.int()).abs().max() <= 1


@pytest.fixture(scope="module")
def request_of(tiny_pipeline):
    def make(*prompts, seed=5, image=None, video=None, condition_video=None, **options):
        params = GenerationParams(**{"num_inference_steps": 2, "enhance_hf": False, **options})
        inputs = Inputs(len(prompts), size_of(image), clip_of(video), clip_of(condition_video))
        return Request(
            resolve(params, inputs, tiny_pipeline.limits), prompts, seed, None, image, video, condition_video
        )

    return make


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


LONG_REFINED = {"num_frames": 5, "num_condition_frames": 1, "refine": True}


@pytest.fixture(scope="module")
def long_refined(tiny_pipeline, request_of):
    """Return the request of a refined video of two segments, and all its events."""
    request = request_of("a", "b", **LONG_REFINED)
    refinement = request.plan.refinement.model_copy(update={"t_thresh": 0.9})  # several steps
    request = dataclasses.replace(request, plan=request.plan.model_copy(update={"refinement": refinement}))
    return request, list(tiny_pipeline.generate(request))


def test_events_come_in_order(long_refined):
    _, events = long_refined
    kinds = [type(event).__name__ for event in events if not isinstance(event, Frames)]
    refine_steps = sum(isinstance(e, Stepped) and e.stage == "refine" and e.segment == 0 for e in events)
    stage = [
        "Encoded",
        "Stepped",
        "Stepped",
        "Latents",
        "Encoded",
        *["Stepped"] * refine_steps,
        "Latents",
        "SegmentDone",
    ]
    later = ["Encoded"] + ["Stepped"] * sum(
        isinstance(e, Stepped) and e.stage == "denoise" and e.segment == 1 for e in events
    )
    assert kinds == [
        *stage,
        *later,
        "Latents",
        "Encoded",
        *["Stepped"] * refine_steps,
        "Latents",
        "SegmentDone",
    ]
    assert [event.segment for event in events] == sorted(event.segment for event in events)
    assert [e.stage for e in events if isinstance(e, Encoded)] == ["denoise", "refine"] * 2
    for event in events:
        if isinstance(event, Stepped):
            assert 1 <= event.step <= event.num_steps
            assert (event.state.stage, event.state.segment, event.state.step) == (
                event.stage,
                event.segment,
                event.step,
            )


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        (("a",), {"num_frames": 13}),
        (("a",), {"num_frames": 1}),
        (("a", "b", "c"), {"num_frames": 9, "num_condition_frames": 5}),
        (("a",), {"num_segments": 3, "num_frames": 9, "num_condition_frames": 1}),
        (("a", "b"), LONG_REFINED | {"spatial_refine_only": True}),
        (("a",), {"refine": True, "num_frames": 1, "spatial_refine_only": True}),
    ],
)
def test_a_video_has_the_size_and_length_of_its_plan(tiny_pipeline, request_of, prompts, options):
    request = request_of(*prompts, **options)
    frames = frames_of(tiny_pipeline.generate(request))
    assert frames.shape == (request.plan.output_frames, *request.plan.output_size, 3)


def test_refined_video_has_the_size_and_length_of_its_plan(long_refined):
    request, events = long_refined
    assert frames_of(events).shape == (request.plan.output_frames, *request.plan.output_size, 3)


def test_segments_join_without_repeats(tiny_pipeline, request_of):
    """The frames of a segment are its decoded latents, but for those that it has from the one before."""
    request = request_of("a", "b", num_frames=9, num_condition_frames=5)
    events = list(tiny_pipeline.generate(request))
    first, second = (
        torch.cat(list(vae_frames(tiny_pipeline, e.latents))) for e in events if isinstance(e, Latents)
    )
    joined = torch.cat([first, second[5:]])
    assert torch.equal(frames_of(events), (joined * 255).to(torch.uint8))


def test_refined_segments_join_without_repeats(tiny_pipeline, long_refined):
    request, events = long_refined
    refined = [e.latents for e in events if isinstance(e, Latents) and e.stage == "refine"]
    parts = []
    for segment, latents in enumerate(refined):
        layout = refine_layout_of(request.plan, segment)
        decoded = torch.cat(list(vae_frames(tiny_pipeline, latents)))[layout.front_padding :][
            : layout.num_frames
        ]
        parts.append(decoded[layout.num_held if segment else 0 :])
    assert torch.equal(frames_of(events), (torch.cat(parts) * 255).to(torch.uint8))


def vae_frames(pipeline, latents):
    return pipeline.vae.decode(latents)


def test_seeds_and_prompts_matter_and_nothing_else_is_random(tiny_pipeline, request_of):
    first, again, other, elsewhere = (
        final_latents(tiny_pipeline, request)
        for request in (request_of("a"), request_of("a"), request_of("a", seed=6), request_of("b"))
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)
    assert not torch.allclose(first, elsewhere, atol=1e-4)


def test_the_default_negative_prompt_is_used_where_guidance_is_on(tiny_pipeline, request_of):
    silent = request_of("a")
    said = dataclasses.replace(silent, negative_prompt=tiny_pipeline.limits.negative_prompt)
    empty = dataclasses.replace(silent, negative_prompt="")
    latents = [final_latents(tiny_pipeline, request) for request in (silent, said, empty)]
    assert torch.equal(latents[0], latents[1])
    assert not torch.allclose(latents[0], latents[2], atol=1e-4)


STARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({}, {"num_frames": 9}),
    "image": ({"image": noise(40, 60, 3)}, {"num_frames": 9}),
    "clip": ({"video": noise(9, 40, 60, 3)}, {"num_frames": 9, "num_condition_frames": 5}),
    "long": ({}, LONG_REFINED | {"num_segments": 2, "spatial_refine_only": True}),
    "refine": (
        {"video": noise(5, 40, 60, 3), "condition_video": noise(6, 40, 60, 3)},
        {"task": "refine", "num_condition_frames": 3},
    ),
}


@pytest.mark.parametrize("start", STARTS)
def test_job_resumes_from_each_of_its_states_bit_for_bit(tiny_pipeline, request_of, start, tmp_path):
    inputs, options = STARTS[start]
    request = request_of("a", **inputs, **options)
    events = list(tiny_pipeline.generate(request))
    for number, event in enumerate(events):
        if isinstance(event, SegmentDone) or (isinstance(event, Stepped) and event.step == 1):
            event.state.save(tmp_path / "state")
            rest = list(tiny_pipeline.generate(request, State.load(tmp_path / "state")))
            check_same_end(events[number + 1 :], rest)


def check_same_end(expected, ours):
    """The same latents and frames; `Encoded` comes again where a stage is taken up in the middle."""
    ours = [event for event in ours if not isinstance(event, Encoded)]
    expected = [event for event in expected if not isinstance(event, Encoded)]
    assert [type(event) for event in ours] == [type(event) for event in expected]
    for one, other in zip(ours, expected, strict=True):
        if isinstance(one, Latents):
            assert torch.equal(one.latents, other.latents)
        if isinstance(one, Frames):
            assert torch.equal(frames_of([one]), frames_of([other]))


def test_job_may_be_abandoned_at_any_event_and_another_started(tiny_pipeline, request_of):
    request = request_of("a", num_frames=5, refine=True, spatial_refine_only=True)
    expected = final_latents(tiny_pipeline, request)
    for number in (0, 2, 4):
        job = tiny_pipeline.generate(request)
        for _ in range(number + 1):
            next(job)
        job.close()
        assert torch.equal(final_latents(tiny_pipeline, request), expected)


def test_loras_leave_nothing_behind(tiny_pipeline, request_of):
    plain, distilled = request_of("a"), request_of("a", distilled=True)
    first = final_latents(tiny_pipeline, plain)
    few = final_latents(tiny_pipeline, distilled)
    assert torch.equal(final_latents(tiny_pipeline, plain), first)
    assert torch.equal(final_latents(tiny_pipeline, distilled), few)


def end_of_first_segment(pipeline, request):
    return next(e.state.tail for e in pipeline.generate(request) if isinstance(e, SegmentDone))


def test_frames_are_handed_over_as_floats_unless_eight_bits_are_asked_for(tiny_pipeline, request_of):
    request = request_of("a", "b", num_frames=9, num_condition_frames=5)
    exact = dataclasses.replace(request, exact_handover=True)
    tails = [end_of_first_segment(tiny_pipeline, r) for r in (request, exact)]
    floats, levels = (tail * 255 for tail in tails)
    assert not torch.allclose(floats, floats.round(), atol=1e-3)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)


@pytest.fixture
def earlier_objects_ignored():
    """Leave the objects that exist now out of `gc.get_objects` and `gc.collect`: hundreds of thousands."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def live_bytes() -> int:
    gc.collect()
    return sum(x.nbytes for x in gc.get_objects() if issubclass(type(x), torch.Tensor))


def test_memory_does_not_grow_with_the_number_of_segments(tiny_pipeline, request_of, earlier_objects_ignored):
    request = request_of(
        "a", num_segments=4, num_frames=5, num_condition_frames=1, num_inference_steps=1, distilled=True
    )
    kept = [live_bytes() for event in tiny_pipeline.generate(request) if isinstance(event, SegmentDone)]
    assert max(kept[1:]) <= 1.01 * kept[1]


@pytest.mark.parametrize(
    ("lora", "options", "field"),
    [("cfg_step_lora", {"distilled": True}, "distilled"), ("refinement_lora", {"refine": True}, "refine")],
)
def test_request_that_needs_a_missing_lora_is_refused(
    tiny_checkpoint, tmp_path, request_of, lora, options, field
):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (copy / "lora" / f"{lora}.safetensors").unlink()
    pipeline = Pipeline.load(copy, torch.float32)
    with pytest.raises(InputError, match=f"{field}: .*{lora}"):
        next(pipeline.generate(request_of("a", **options)))


def test_shift_is_read_from_the_checkpoint(tiny_checkpoint, tmp_path, tiny_pipeline, request_of):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps({"shift": 3.0}))
    request = request_of("a")
    ours = final_latents(Pipeline.load(copy, torch.float32), request)
    assert not torch.allclose(ours, final_latents(tiny_pipeline, request), atol=1e-2)


def test_job_in_bf16_has_finite_latents_and_frames(tiny_checkpoint, request_of):
    request = request_of("a", num_frames=5)
    events = list(Pipeline.load(tiny_checkpoint, torch.bfloat16).generate(request))
    counts = Counter(type(event) for event in events)
    assert counts[Latents] == 1
    assert all(
        e.latents.dtype == torch.float32 and e.latents.isfinite().all()
        for e in events
        if isinstance(e, Latents)
    )
    assert len(frames_of(events)) == request.plan.output_frames
