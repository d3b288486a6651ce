"""All stages together make a checkpoint that the server's own code loads and runs."""

import shutil
import sys

import pytest
import torch

from model.io.json_file import load_json
from model.pipeline.pipeline import Pipeline
from model.transformer.lora import read_lora
from training import distil, evaluation, latents, lora, quality, refine, text, transformer, vae
from training.checkpoint import LIMITS, load_dit

pytestmark = pytest.mark.integration

STAGES = (vae, text, latents, transformer, distil, refine)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Run one step of each stage on very little data."""
    run, made = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (vae, "POOL_CLIPS", 4),
            (text, "BATCH", 4),
            (latents, "SHARD_CLIPS", 24),
            (transformer, "BATCH", 2),
            (transformer, "IMAGE_STEPS", 0),
            (distil, "BATCH", 2),
            (refine, "POOL_CLIPS", 1),
        ):
            patch.setattr(module, name, value)
        for stage in STAGES:
            patch.setattr(sys, "argv", ["x", str(run), str(made), "--steps", "1", "--threads", "1"])
            stage.main()
    return made


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return Pipeline.load(checkpoint, torch.float32)


def test_checkpoint_has_loras_and_limits(pipeline):
    assert pipeline.lora.names == {"cfg_step_lora", "refinement_lora"}
    assert pipeline.limits.default_num_frames == 17
    assert pipeline.limits.to_json()["fps"] == LIMITS["fps"]


def test_checkpoint_is_small_enough_for_repository(checkpoint):
    size_bytes = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert size_bytes < 20_000_000


@pytest.mark.parametrize("task", ["text to video", "continuation"])
def test_tasks_make_videos_that_can_be_evaluated(pipeline, task):
    (video,) = quality.measure(pipeline, "distilled", task, [0])
    assert video.frames.shape == (17, 64, 96, 3)
    assert set(video.correct) == set(evaluation.PROPERTIES)


def test_two_prompts_make_two_videos_side_by_side(pipeline):
    (video,) = quality.measure(pipeline, "distilled", "one word changed", [3])
    assert video.frames.shape == (17, 64, 192, 3)
    assert video.trial == 3


def test_refined_video_has_double_size_and_frame_rate(pipeline):
    (video,) = quality.measure(pipeline, "refined", "text to video", [0])
    assert video.frames.shape == (34, 128, 192, 3)


def test_video_begins_with_image(pipeline):
    (video,) = quality.measure(pipeline, "standard", "image to video", [0])
    assert video.scores["first frame, dB"] > 20  # the VAE alone is this good; the transformer is untrained


def test_untrained_lora_changes_nothing(checkpoint, tmp_path):
    dit = load_dit(checkpoint, torch.device("cpu"))
    before = dit.blocks[0].attn.qkv.weight.clone()
    lora.save(lora.attach(dit), tmp_path / "none.safetensors")
    assert torch.equal(dit.blocks[0].attn.qkv.weight, before)
    file = read_lora(tmp_path / "none.safetensors", load_dit(checkpoint, torch.device("cpu")))
    assert len(file.modules) == 8 * len(dit.blocks)


def test_finished_stage_changes_nothing_when_repeated(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "SHARD_CLIPS", 2)
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), str(checkpoint), "--steps", "1", "--threads", "1"])
    latents.main()
    (shard,) = (tmp_path / "latents").iterdir()
    before = shard.stat().st_mtime_ns
    latents.main()
    assert shard.stat().st_mtime_ns == before


def test_more_vae_training_keeps_latent_statistics(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint / "vae", tmp_path / "made" / "vae")
    monkeypatch.setattr(vae, "POOL_CLIPS", 6)  # other clips than the statistics come from
    arguments = ["x", str(tmp_path / "run"), str(tmp_path / "made"), "--steps", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    vae.main()
    before, after = (load_json(folder / "vae" / "config.json") for folder in (checkpoint, tmp_path / "made"))
    assert after["latents_std"] == before["latents_std"]
    assert after["latents_mean"] == before["latents_mean"]
