"""Write and load the transformer of the pocket checkpoint, with its schedule and limits.

`training.transformer` writes them; later stages load the transformer.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.io.checkpoint import Weights, load_module
from model.transformer.config import DitConfig, load_dit_config
from model.transformer.dit import Dit
from training.captions import vocabulary
from training.flow_matching import SHIFT
from training.scenes import FPS, HEIGHT, WIDTH

STEM = "diffusion_pytorch_model"
LIMITS: Mapping[str, object] = {
    "buckets": {"480p": {"0.67": [HEIGHT, WIDTH]}, "720p": {"0.67": [HEIGHT, WIDTH]}},
    "refine_buckets": {"0.67": [2 * HEIGHT, 2 * WIDTH]},
    "default_size": [HEIGHT, WIDTH],
    "min_side": HEIGHT,
    "max_pixels": HEIGHT * WIDTH,
    "only_buckets": True,
    "default_num_frames": 17,
    "max_num_frames": 17,
    "max_num_segments": 40,
    "num_condition_frames": 5,
    "fps": FPS,
    "num_inference_steps": 20,
    "distilled_num_inference_steps": 10,
    "max_num_inference_steps": 100,
    "guidance_scale": 2.0,
    "max_guidance_scale": 20.0,
    "max_prompt_characters": 1000,
    "negative_prompt": "",
    "example_prompts": [
        "A big red triangle growing on a gray background with stripes",
        "A small blue triangle moving slowly to the right on a white ground",
        "A big yellow ball bouncing on a plain black background",
    ],
    "known_words": vocabulary(),
}


def write_dit(dit: Dit, checkpoint: Path) -> None:
    """Write the transformer, its noise schedule, and the limits and defaults of the checkpoint."""
    folder = checkpoint / "dit"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in dit.state_dict().items()}
    save_file(weights, folder / f"{STEM}.safetensors")
    _write_json(folder / "config.json", _document(dit.config))
    scheduler = {"shift": SHIFT, "num_train_timesteps": 1000}
    _write_json(checkpoint / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(checkpoint / "limits.json", LIMITS)


def load_dit(checkpoint: Path, device: torch.device) -> Dit:
    """Load the transformer of a checkpoint as the server does, in fp32."""
    config = load_dit_config(checkpoint / "dit" / "config.json")
    return load_module(lambda: Dit(config, torch.float32), Weights(checkpoint / "dit", STEM), device)


def _document(config: DitConfig) -> dict[str, object]:
    return {**vars(config), "bsa_params": vars(config.bsa_params), "enable_bsa": False}


def _write_json(path: Path, document: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
