"""Whole jobs against `plain`, on another checkpoint than the parity data's."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from model.pipeline.events import Frames, Latents
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.spec.geometry import Clip, Size, refine_layout
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from tests.model.plain.checkpoints import ATTENTION_AND_FFN, EVERYTHING, SMALL, write_dit, write_lora
from tests.model.plain.pipelines import PlainPipeline, PlainRefinement, Result, Task
from tests.model.plain.pipelines import refine_layout as plain_refine_layout

TABLES = {
    "buckets": {"480p": {"0.67": [32, 48], "1.00": [32, 32], "1.50": [48, 32]}},
    "refine_buckets": {"1.00": [64, 64], "2.00": [128, 64]},
    "default_size": [32, 48],
    "max_pixels": 64 * 64,
}


@dataclass(frozen=True)
class World:
    """One checkpoint, loaded by both."""

    pipeline: Pipeline
    plain: PlainPipeline


@pytest.fixture(scope="module")
def world(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Text encoder and VAE of the tiny checkpoint; transformer, shift and LoRA files of its own."""
    folder = tmp_path_factory.mktemp("world")
    for part in ("tokenizer", "text_encoder"):
        (folder / part).symlink_to(tiny_checkpoint / part)
    text_width = json.loads((folder / "text_encoder" / "config.json").read_text())["d_model"]
    config = SMALL | {"caption_channels": text_width, "num_heads": 4}
    write_dit(folder / "dit", config, seed=5)
    write_lora(folder / "lora" / "cfg_step_lora.safetensors", config, ATTENTION_AND_FFN, rank=3, scale=0.2)
    write_lora(folder / "lora" / "refinement_lora.safetensors", config, EVERYTHING, rank=5, scale=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        vae: Any = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1)
    vae.save_pretrained(folder / "vae")
    limits = json.loads((tiny_checkpoint / "limits.json").read_text())
    (folder / "limits.json").write_text(json.dumps(limits | TABLES))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"shift": 7.0, "num_train_timesteps": 1000}')
    return World(Pipeline.load(folder, torch.float32), PlainPipeline(folder, torch.float32))


def picture(height: int, width: int, seed: int = 1) -> Tensor:
    return clip(1, height, width, seed)[0]


def clip(frames: int, height: int, width: int, seed: int = 1) -> Tensor:
    """A few moving blobs, uint8 [f, H, W, 3]."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, frames, 5, 7, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    return (smooth[0].permute(1, 2, 3, 0) * 255).to(torch.uint8)


def make(world: World, request: Request) -> Result:
    """What our pipeline makes, in the plain one's terms."""
    result = Result()
    for event in world.pipeline.generate(request):
        if isinstance(event, Latents):
            kind = result.latents if event.stage == "denoise" else result.refined_latents
            kind.append(event.latents)
        elif isinstance(event, Frames):
            assert event.frames is not None
            result.frames.append(event.frames)
    return result


def agree(found: Result, expected: Result, atol: float = 3e-4) -> None:
    pairs = ((found.latents, expected.latents), (found.refined_latents, expected.refined_latents))
    for one, other in pairs:
        assert len(one) == len(other)
        for latents, wanted in zip(one, other, strict=True):
            torch.testing.assert_close(latents, wanted, atol=atol, rtol=0)
    frames = (expected.joined() * 255).to(torch.uint8)
    assert frames.float().std() > 10
    assert found.joined().shape == frames.shape
    assert (found.joined().int() - frames.int()).abs().max() <= 1


def numpy(frames: Tensor | None) -> Any:
    return None if frames is None else frames.numpy()


def compare(
    world: World,
    task: Task,
    params: GenerationParams,
    image: Tensor | None = None,
    video: Tensor | None = None,
) -> Result:
    """Resolve the options, run the task both ways, and compare the results."""
    inputs = Inputs(
        num_prompts=len(task.prompts),
        image=None if image is None else Size(*image.shape[:2]),
        video=None if video is None else Clip(video.shape[1], video.shape[2], len(video)),
    )
    params = params.model_copy(
        update={
            "num_frames": task.num_frames,
            "num_inference_steps": task.steps,
            "distilled": task.distilled,
            "guidance_scale": None if task.distilled else task.guidance,
            "enhance_hf": task.enhance_hf,
            "condition_cache": task.condition_cache,
        }
    )
    plan = resolve(params, inputs, world.pipeline.limits)
    request = Request(
        plan,
        task.prompts,
        task.seed,
        task.negative_prompt,
        image=image,
        video=video,
        exact_handover=task.eight_bits,
    )
    task = replace(task, height=plan.height, width=plan.width, image=numpy(image), video=numpy(video))
    if plan.refinement:
        stage = plan.refinement
        task = replace(
            task,
            refine=PlainRefinement(
                stage.height, stage.width, stage.num_inference_steps, stage.t_thresh, not stage.spatial_only
            ),
        )
    found = make(world, request)
    # a last bit of a float can tip a frame's value over to the next of 256
    agree(found, world.plain.generate(task), atol=3e-3 if task.eight_bits else 3e-4)
    assert len(found.joined()) == plan.output_frames
    assert tuple(found.joined().shape[1:3]) == plan.output_size
    return found


TEXT = Task(
    prompts=("a red ball",), negative_prompt="dull", seed=4, height=32, width=48, num_frames=9, steps=3
)
DISTILLED = replace(TEXT, distilled=True, steps=2)


def test_text_to_video(world: World) -> None:
    compare(world, replace(TEXT, guidance=2.5), GenerationParams(height=32, width=48))


def test_text_to_video_without_guidance(world: World) -> None:
    compare(world, replace(TEXT, guidance=1.0, num_frames=1), GenerationParams(height=48, width=32))


def test_distilled_text_to_video(world: World) -> None:
    compare(world, replace(DISTILLED, steps=7), GenerationParams(height=32, width=48))


def test_image_to_video(world: World) -> None:
    compare(world, TEXT, GenerationParams(), image=picture(70, 90))


def test_distilled_image_to_video(world: World) -> None:
    compare(world, DISTILLED, GenerationParams(), image=picture(96, 64))


@pytest.mark.parametrize("condition_cache", [True, False])
@pytest.mark.parametrize("held", [1, 5])
def test_continuation_from_the_end_of_a_clip(world: World, held: int, condition_cache: bool) -> None:
    task = replace(TEXT, condition_frames=held, condition_cache=condition_cache, enhance_hf=False)
    compare(world, task, GenerationParams(num_condition_frames=held), video=clip(11, 60, 100))


def test_continuation_with_more_steps_at_low_noise(world: World) -> None:
    task = replace(TEXT, condition_frames=5, num_frames=13, guidance=1.5)
    compare(world, task, GenerationParams(num_condition_frames=5), video=clip(6, 64, 96))


@pytest.mark.parametrize("condition_cache", [True, False])
def test_distilled_continuation(world: World, condition_cache: bool) -> None:
    task = replace(DISTILLED, condition_frames=5, condition_cache=condition_cache)
    compare(world, task, GenerationParams(num_condition_frames=5), video=clip(9, 32, 48))


def test_long_video_with_a_prompt_for_each_segment(world: World) -> None:
    task = replace(DISTILLED, prompts=("one", "two &amp; more", "three"), segments=3, condition_frames=5)
    found = compare(world, task, GenerationParams(num_condition_frames=5, height=32, width=48))
    assert [len(part) for part in found.latents] == [1, 1, 1]


def test_long_video_with_guidance_and_one_prompt(world: World) -> None:
    task = replace(TEXT, segments=2, condition_frames=1, num_frames=5, steps=2)
    compare(world, task, GenerationParams(num_segments=2, num_condition_frames=1, height=32, width=32))


@pytest.mark.parametrize("start", ["image", "video"])
def test_long_video_from_an_image_or_a_clip(world: World, start: str) -> None:
    task = replace(DISTILLED, segments=2, condition_frames=5)
    given = {"image": picture(64, 96)} if start == "image" else {"video": clip(7, 64, 96)}
    compare(world, task, GenerationParams(task="long_video", num_segments=2, num_condition_frames=5), **given)


@pytest.mark.parametrize(
    ("start", "doubles", "eight_bits"),
    [
        ("text", True, False),
        ("text", False, True),
        ("image", False, False),
        pytest.param("image", True, True, marks=pytest.mark.integration),
    ],
)
def test_long_video_refined_segment_by_segment(
    world: World, start: str, doubles: bool, eight_bits: bool
) -> None:
    task = replace(DISTILLED, segments=2, condition_frames=5, eight_bits=eight_bits)
    size: dict[str, Any] = {"height": 32, "width": 48} if start == "text" else {}
    params = GenerationParams(
        task="long_video",
        num_segments=2,
        num_condition_frames=5,
        refine=True,
        t_thresh=0.3,
        spatial_refine_only=not doubles,
        **size,
    )
    compare(world, task, params, image=picture(64, 96) if start == "image" else None)


# ---------------------------------------------------------------- refinement of an uploaded clip


@pytest.mark.parametrize("doubles", [True, False])
@pytest.mark.parametrize(
    ("frames", "held"),
    [
        (5, 0),  # doubled: 10 frames in 16
        (7, 0),  # doubled: 14 frames, and 16 would be one too few
        (5, "image"),
        (7, 4),  # one of the condition's latents stands for padding
        (6, 5),  # the condition's latents without padding do not fill a brick
    ],
)
def test_refinement(world: World, frames: int, held: int | str, doubles: bool) -> None:
    video = clip(frames, 40, 60)
    image = picture(50, 50) if held == "image" else None
    condition = clip(9, 100, 150, seed=2) if isinstance(held, int) and held else None
    k = 1 if held == "image" else int(held)
    inputs = Inputs(
        video=Clip(40, 60, frames),
        image=None if image is None else Size(50, 50),
        condition_video=None if condition is None else Clip(100, 150, 9),
    )
    params = GenerationParams(
        task="refine",
        num_condition_frames=k if condition is not None else None,
        num_inference_steps=4,
        spatial_refine_only=not doubles,
    )
    plan = resolve(params, inputs, world.pipeline.limits)
    stage = plan.refinement
    assert stage
    request = Request(plan, ("a wave",), 6, image=image, video=video, condition_video=condition)
    given = image[None] if image is not None else condition
    found = make(world, request)
    frames_out, latents = world.plain.refine(
        video.numpy(),
        "a wave",
        6,
        PlainRefinement(stage.height, stage.width, 4, stage.t_thresh, doubles),
        None if given is None else given[-k:].numpy(),
    )
    agree(found, Result(refined_latents=[latents], frames=[frames_out]))
    assert len(found.joined()) == plan.output_frames == frames * (2 if doubles else 1)


def test_refined_frames_lie_as_the_loops_say_for_any_length() -> None:
    for wanted in range(1, 200):
        for held in range(min(wanted, 40)):
            layout = refine_layout(wanted, held)
            back = layout.padded_frames - layout.front_padding - wanted
            found = (layout.condition_latents, layout.front_padding, layout.noise_latents, back)
            assert found == plain_refine_layout(wanted, held), (wanted, held)
