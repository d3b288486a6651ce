"""The command line, called as a function, and once as a program under torchrun."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model.__main__ import main
from model.command import _requests
from model.io.checkpoint import Weights
from model.io.video import read_clip
from model.options import STEP_CACHE, parser
from model.pipeline.pipeline import Pipeline
from model.spec.errors import ModelError
from tests.model.parity_cases import CASES, expected_latents

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(tiny_checkpoint, tmp_path, monkeypatch):
    """Run the command line on the tiny checkpoint inside an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*options, checkpoint=tiny_checkpoint):
        return main(["--checkpoint", str(checkpoint), *map(str, options)])

    return run


@pytest.mark.skipif(torch.__version__ < "2.12", reason="PyTorch shows its settings since 2.12")
def test_allocator_grows_its_segments(tmp_path):
    """PyTorch reads the variable when it is first asked, which is after the command line was read."""
    code = (
        "import torch; from model.__main__ import main\n"
        f"assert main(['--checkpoint', {str(tmp_path)!r}, '--prompt', 'a']) == 2\n"
        "print(torch._C._accelerator_getAllocatorSettings())"
    )
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "expandable_segments:True"


def test_help_does_not_import_torch():
    code = "import sys; sys.modules['torch'] = None; from model.__main__ import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--prompt" in done.stdout


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the base weights that were read to merge LoRAs."""
    names: list[str] = []
    read = Weights.read

    def counting_read(weights, name, like, device):
        names.append(name)
        return read(weights, name, like, device)

    monkeypatch.setattr(Weights, "read", counting_read)
    return names


LONG_VIDEO = (
    *("--task", "long_video", "--prompt", "a cat", "--prompt", "a dog", "--refine", "--spatial-refine-only"),
    *("--height", 32, "--width", 48),
    *("--num-frames", 5, "--num-condition-frames", 1, "--steps", 1, "--save-latents"),
)


def test_refined_long_video_reads_each_weight_once_if_the_host_has_the_memory(
    call, reads, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    assert call(*LONG_VIDEO, "kept.safetensors") == 0
    read_once = sorted(reads)
    assert read_once == sorted(set(reads)) != []
    assert "weights are kept in" in caplog.text
    reads.clear()
    monkeypatch.setattr("model.command.host_memory_bytes", lambda: 0)
    assert call(*LONG_VIDEO, "read.safetensors") == 0
    assert sorted(reads) == sorted(3 * read_once)
    assert "LoRAs are read again at each switch" in caplog.text
    kept, read = load_file("kept.safetensors"), load_file("read.safetensors")
    assert kept.keys() == read.keys() == {"latents.0", "latents.1"}
    assert all(torch.equal(kept[name], read[name]) for name in kept)


def test_lora_that_is_merged_once_is_not_kept(call, reads, monkeypatch):
    monkeypatch.setattr("model.command.share_file", None)
    distilled = ("--num-frames", 5, "--steps", 1, "--distilled", "--save-latents", "x.safetensors")
    assert call("--task", "text_to_video", "--prompt", "a cat", "--prompt", "a dog", *distilled) == 0
    assert sorted(reads) == sorted(set(reads)) != []


def test_only_loras_that_the_videos_need_are_kept(call, monkeypatch):
    monkeypatch.setattr(Pipeline, "load", load := Mock(side_effect=ModelError("enough")))
    assert call(*LONG_VIDEO, "x.safetensors") == 2
    assert load.call_args.kwargs["loras"] == {"refinement_lora"}


def test_weights_that_do_not_fit_into_the_gpu_are_not_loaded(call, monkeypatch, capsys):
    monkeypatch.setattr("model.command.free_gpu_bytes", lambda _: 1000)
    monkeypatch.setattr("model.command.Pipeline.load", None)
    assert call("--prompt", "a cat", "--device", "cpu") == 2
    assert "the weights take" in capsys.readouterr().err


def test_prompt_gives_a_video_and_its_latents(call):
    code = call(
        "--prompt",
        "a cat",
        "--num-frames",
        9,
        "--steps",
        2,
        "--output",
        "video.mp4",
        "--save-latents",
        "x.safetensors",
    )
    assert code == 0
    assert read_clip(Path("video.mp4")).shape == (9, 64, 96, 3)
    saved = load_file("x.safetensors")
    assert set(saved) == {"latents"}
    assert saved["latents"].shape == (1, 16, 3, 8, 12)
    assert saved["latents"].dtype == torch.float32


def test_each_segment_has_its_latents(call):
    prompts = ["--prompt", "a cat", "--prompt", "a dog"]
    code = call(
        "--task",
        "long_video",
        *prompts,
        "--num-frames",
        9,
        "--steps",
        1,
        "--distilled",
        "--save-latents",
        "x.safetensors",
    )
    assert code == 0
    assert set(load_file("x.safetensors")) == {"latents.0", "latents.1"}


def test_prompts_without_segments_give_separate_videos(call):
    prompts = ["--prompt", "a cat", "--prompt", "a dog"]
    code = call(
        "--task",
        "text_to_video",
        *prompts,
        "--num-frames",
        5,
        "--steps",
        1,
        "--save-latents",
        "x.safetensors",
    )
    assert code == 0
    first, second = (load_file(f"x.{i}.safetensors")["latents"] for i in range(2))
    assert not torch.equal(first, second)


def test_an_image_begins_a_video_and_refinement_follows(call, tmp_path):
    Image.new("RGB", (60, 40), (200, 30, 90)).save(tmp_path / "image.png")
    code = call(
        "--prompt",
        "a cat",
        "--image",
        "image.png",
        "--num-frames",
        5,
        "--steps",
        1,
        "--refine",
        "--output",
        "video.mp4",
    )
    assert code == 0
    assert read_clip(Path("video.mp4")).shape == (10, 128, 192, 3)


def test_a_clip_is_refined_after_another(call, tmp_path):
    for name, length in (("clip", 5), ("before", 6)):
        np.savez(tmp_path / f"{name}.npz", frames=np.full((length, 40, 60, 3), 99, np.uint8))
    code = call(
        "--task", "refine", "--prompt", "a", "--video", "clip.npz", "--condition-video", "before.npz",
        "--num-condition-frames", 3, "--steps", 1, "--save-latents", "x.safetensors",
    )  # fmt: skip
    assert code == 0
    assert load_file("x.safetensors")["latents"].shape == (1, 16, 8, 16, 24)


def test_progress_is_shown_on_stderr(call, capsys):
    call("--prompt", "a cat", "--num-frames", 5, "--steps", 2)
    shown = capsys.readouterr()
    assert "segment 1/1 denoise" in shown.err
    assert "2/2" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-frames", "8"], "num_frames: must be one more than a multiple of 4"),
        (["--image", "nowhere.png"], "image: nowhere.png is missing"),
        (["--video", "nowhere.mp4"], "video: nowhere.mp4 is missing"),
        (["--output", "nowhere/x.mp4"], "nowhere is missing or cannot be written"),
        (["--save-latents", "nowhere/x.safetensors"], "nowhere is missing or cannot be written"),
        (["--resolution", "9p"], "resolution: must be one of"),
        (["--context-parallel", "2"], "torchrun"),
        (["--shard-weights"], "at least two ranks"),
        (["--height", "64", "--width", "100"], "width: must be a multiple of 16"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(call, capsys, options, message):
    assert call("--prompt", "a", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_bad_checkpoint_is_one_line_and_exit_code_two(call, capsys, tmp_path):
    assert call("--prompt", "a", checkpoint=tmp_path / "nowhere") == 2
    error = capsys.readouterr().err
    assert "nowhere" in error
    assert len(error.strip().splitlines()) == 1


def test_without_a_checkpoint_it_takes_the_one_that_comes_with_it():
    assert parser().parse_args(["--prompt", "a cat"]).checkpoint == ROOT / "pocket"


def test_an_unknown_option_is_refused(call):
    with pytest.raises(SystemExit) as exit_:
        call("--prompt", "a", "--upside-down")
    assert exit_.value.code == 2


def test_only_one_format_of_quantised_weights_is_accepted(call, capsys):
    with pytest.raises(SystemExit) as exit_:
        call("--prompt", "a", "--quantize", "int8", "--fp8")
    assert exit_.value.code == 2
    assert "not allowed with argument --quantize" in capsys.readouterr().err


def test_a_checkpoint_without_limits_takes_small_sizes(call, parity_checkpoint):
    options = [
        "--height",
        32,
        "--width",
        48,
        "--num-frames",
        5,
        "--steps",
        1,
        "--save-latents",
        "x.safetensors",
    ]
    assert call("--prompt", "a", *options, checkpoint=parity_checkpoint) == 0
    assert load_file("x.safetensors")["latents"].shape == (1, 16, 2, 4, 6)


@pytest.mark.integration
@pytest.mark.parametrize(
    "options",
    [
        [],
        *(
            pytest.param([option], marks=pytest.mark.soak)
            for option in ("--shard-weights", "--stream-weights")
        ),
    ],
)
def test_torchrun_gives_the_published_latents(parity_checkpoint, tmp_path, options):
    said, out = CASES["t2v"], tmp_path / "x.safetensors"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "model",
        "--checkpoint", parity_checkpoint, "--task", "text_to_video", "--prompt", said["prompt"],
        "--negative-prompt", said["negative_prompt"], "--height", said["height"], "--width", said["width"],
        "--num-frames", said["num_frames"], "--steps", said["num_inference_steps"],
        "--guidance-scale", said["guidance_scale"], "--seed", said["seed"],
        "--device", "cpu", "--save-latents", out, *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*map(str, command)], check=True, env=environment, cwd=tmp_path)
    expected, _, _ = expected_latents("t2v")
    torch.testing.assert_close(load_file(out)["latents"], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("said", "threshold"),
    [
        ((), None),
        (("--quality", "balanced"), STEP_CACHE),
        (("--quality", "balanced", "--step-cache", "0.5"), 0.5),
        (("--quality", "exact", "--step-cache", "0.5"), None),
    ],
)
def test_a_video_is_balanced_only_where_that_is_asked_for(tiny_checkpoint, said, threshold):
    options = parser().parse_args(["--checkpoint", str(tiny_checkpoint), "--prompt", "a cat", *said])
    (request,) = _requests(options)
    assert request.plan.step_cache == threshold


def test_balanced_quality_without_guidance_is_refused(call, capsys):
    assert call("--prompt", "a cat", "--distilled", "--quality", "balanced") == 2
    assert "quality: balanced needs a guidance_scale above 1" in capsys.readouterr().err
