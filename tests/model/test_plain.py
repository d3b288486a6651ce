"""The loops of `plain` against the published values: what the other tests take as the truth is true there."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.model.parity_cases import CASES, CONDITION_FRAMES, PARITY, expected_latents
from tests.model.plain import schedules
from tests.model.plain.checkpoints import SMALL, shapes
from tests.model.plain.pipelines import PlainPipeline, Task, bucket, refine_layout
from tests.model.plain.transformer import PlainTransformer, load_transformer

CALLS = sorted(path.stem for path in (PARITY / "dit_cases").iterdir())
SCHEDULES = {
    **{f"standard_{steps}": schedules.standard(steps, 12.0) for steps in (4, 16, 50)},
    **{f"distill_{steps}": schedules.distilled(steps, 12.0) for steps in (4, 8, 16)},
    **{f"enhance_hf_{steps}": schedules.with_enhance_hf(steps, 12.0) for steps in (4, 50)},
    **{f"refine_{steps}_t_thresh_0.5": schedules.refinement(steps, 12.0, 0.5) for steps in (4, 50)},
}


@pytest.fixture(scope="module")
def pipeline() -> PlainPipeline:
    return PlainPipeline(PARITY / "checkpoint", torch.float32)


def transformer_for(case: str) -> PlainTransformer:
    plain = load_transformer(PARITY / "checkpoint", torch.float32)
    if case.endswith("_lora"):
        return plain.with_lora(PARITY / "checkpoint" / "lora" / f"{case.removeprefix('t2v_')}.safetensors")
    if case == "t2v_no_zero_pad":
        return replace(plain, config=plain.config | {"text_tokens_zero_pad": False})
    if case.endswith("_sharp"):
        sharp = {
            name: weight * 6 for name, weight in plain.weights.items() if ".attn." in name and "norm" in name
        }
        return replace(plain, weights=plain.weights | sharp)
    return plain


@pytest.mark.parametrize("case", CALLS)
def test_the_loops_predict_the_published_velocity(case: str) -> None:
    given = load_file(PARITY / "dit_cases" / f"{case}.safetensors")
    plain = transformer_for(case)
    latents, timesteps = given["in.hidden_states"], given["in.timestep"]
    if timesteps.ndim == 1:
        timesteps = timesteps[:, None].expand(-1, latents.shape[2])
    cache = plain.remember(given["in.condition_latents"][0]) if case.endswith("_cache") else None
    bricks: Any = plain.bricks if "sparse" in case else None
    if case.endswith("_sharp"):
        bricks = replace(bricks, cdf_threshold=0.5)
    found = plain(
        latents,
        timesteps,
        given["in.encoder_hidden_states"][:, 0],
        given["in.encoder_attention_mask"],
        condition=CONDITION_FRAMES.get(case, 0),
        cache=cache,
        bricks=bricks,
    )
    torch.testing.assert_close(found, given["out.velocity"], atol=3e-5, rtol=0)


def test_the_loops_compute_the_published_keys_and_values() -> None:
    given = load_file(PARITY / "dit_cases" / "continuation_kv_cache.safetensors")
    cache = load_transformer(PARITY / "checkpoint").remember(given["in.condition_latents"][0])
    for i, (k, v) in enumerate(cache):
        torch.testing.assert_close(k.float(), given[f"out.kv.{i}.k"][0], atol=2e-5, rtol=0)
        torch.testing.assert_close(v.float(), given[f"out.kv.{i}.v"][0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", ["t2v", "t2v_distill", "t2v_prompt_cleaning"])
def test_the_loops_make_the_published_latents_of_a_text(pipeline: PlainPipeline, case: str) -> None:
    found = pipeline.generate(task_of(case)).latents[0]
    torch.testing.assert_close(found, expected_latents(case)[0], atol=2e-4, rtol=0)


def test_the_loops_make_the_published_frames(pipeline: PlainPipeline) -> None:
    frames = pipeline.generate(task_of("t2v")).joined()
    expected = load_file(PARITY / "expected" / "t2v_frames.safetensors")["frames"]
    assert ((frames * 255).to(torch.uint8).int() - expected.int()).abs().max() <= 1


def task_of(case: str) -> Task:
    said = CASES[case]
    return Task(
        prompts=(said["prompt"],),
        seed=said["seed"],
        height=said["height"],
        width=said["width"],
        num_frames=said["num_frames"],
        steps=said["num_inference_steps"],
        guidance=said.get("guidance_scale", 1.0),
        negative_prompt=said.get("negative_prompt", ""),
        distilled=case.endswith("_distill"),
    )


@pytest.mark.parametrize("name", json.loads((PARITY / "schedules_shift_12.json").read_text()))
def test_the_loops_step_through_the_published_schedules(name: str) -> None:
    published = json.loads((PARITY / "schedules_shift_12.json").read_text())[name]
    timesteps, sigmas = SCHEDULES[name]
    torch.testing.assert_close(timesteps, torch.tensor(published["timesteps"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(sigmas, torch.tensor(published["sigmas"]), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (480, 832, [704, 1280]),
        (1, 1, [960, 960]),
        (105, 100, [960, 960]),
        (9, 100, [448, 2048]),
        (9, 1, [1920, 512]),
    ],
)
def test_the_loops_find_the_nearest_size(height: int, width: int, size: list[int]) -> None:
    table = json.loads((PARITY / "buckets.json").read_text())["refine"]
    assert bucket(table, height, width) == size


def test_small_checkpoints_have_the_published_names_and_shapes() -> None:
    published = json.loads((PARITY / "dit_full_size_keys.json").read_text())
    released = SMALL | {
        "hidden_size": 4096,
        "depth": 48,
        "num_heads": 32,
        "caption_channels": 4096,
        "adaln_tembed_dim": 512,
        "frequency_embedding_size": 256,
    }
    assert shapes(released) == published


@pytest.mark.parametrize(
    ("wanted", "held", "clean_latents", "in_front", "noise_latents", "padded"),
    [(186, 26, 8, 3, 40, 189), (186, 0, 0, 0, 48, 192), (186, 1, 4, 12, 48, 205), (93, 13, 4, 0, 20, 93)],
)
def test_layouts_of_refinement_are_those_worked_out_by_hand(
    wanted: int, held: int, clean_latents: int, in_front: int, noise_latents: int, padded: int
) -> None:
    *layout, at_back = refine_layout(wanted, held)
    assert layout == [clean_latents, in_front, noise_latents]
    assert in_front + wanted + at_back == padded
