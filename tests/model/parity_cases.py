"""What the published code computed for a tiny checkpoint: transformer calls and whole jobs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

PARITY = Path(__file__).with_name("parity")
CASES = json.loads((PARITY / "expected" / "cases.json").read_text())
CONDITION_FRAMES = {
    "i2v": 1,
    "continuation_two_condition_latents": 2,
    "block_sparse_four_condition_latents": 4,
}
CPU = torch.device("cpu")


def load_dit(checkpoint: Path, **changes):
    """The transformer in fp32, its configuration changed."""
    from model.io.checkpoint import Weights, load_module
    from model.transformer.config import load_dit_config
    from model.transformer.dit import Dit

    config = dataclasses.replace(load_dit_config(checkpoint / "dit" / "config.json"), **changes)
    weights = Weights(checkpoint / "dit", "diffusion_pytorch_model")
    return load_module(lambda: Dit(config, torch.float32), weights, CPU)


def dit_for(case: str, checkpoint: Path = PARITY / "checkpoint"):
    """The transformer as a case wants it: without zero padding, with sharper norms, with a LoRA."""
    from model.io.checkpoint import Weights
    from model.transformer.lora import LoraMerger, read_lora

    dit = load_dit(checkpoint, text_tokens_zero_pad=case != "t2v_no_zero_pad")
    if case.endswith("_sharp"):
        dit.config = dataclasses.replace(
            dit.config, bsa_params=dataclasses.replace(dit.config.bsa_params, cdf_threshold=0.5)
        )
        for block in dit.blocks:
            block.attn.q_norm.weight.data = block.attn.q_norm.weight * 6
            block.attn.k_norm.weight.data = block.attn.k_norm.weight * 6
    if case.endswith("_lora"):
        name = case.removeprefix("t2v_")
        files = {name: read_lora(checkpoint / "lora" / f"{name}.safetensors", dit)}
        LoraMerger(dit, Weights(checkpoint / "dit", "diffusion_pytorch_model"), files).switch(name)
    return dit


def velocity(case: str, parallel, dit=None, timestep_dtype=torch.float32):
    """What our transformer answers to a case (its timesteps rounded), and what the published one did."""
    from model.transformer.token_layout import Window, build_layout

    dit = dit or dit_for(case)
    given = load_file(PARITY / "dit_cases" / f"{case}.safetensors")
    latents, timesteps = given["in.hidden_states"], given["in.timestep"]
    num_frames, height, width = latents.shape[2:]
    if timesteps.ndim == 1:
        timesteps = timesteps[:, None].expand(-1, num_frames)
    timesteps = timesteps.to(timestep_dtype).float()
    text = dit.text_kv(given["in.encoder_hidden_states"][:, 0], given["in.encoder_attention_mask"])
    past, first = None, 0
    if "in.condition_latents" in given:
        clean = given["in.condition_latents"]
        first = clean.shape[2]
        past = dit.condition_kv(
            clean, build_layout(dit.config, Window(first, height, width), parallel, sparse=False)
        )
    window = Window(num_frames, height, width, num_condition=CONDITION_FRAMES.get(case, 0), first=first)
    layout = build_layout(dit.config, window, parallel, sparse="sparse" in case)
    return dit(latents, timesteps, layout, text, past), given["out.velocity"]


def size_of(image):
    """The size of an image, as a request gives it."""
    from model.spec.geometry import Size

    return None if image is None else Size(image.shape[0], image.shape[1])


def clip_of(frames):
    """The size and length of a clip, as a request gives it."""
    from model.spec.geometry import Clip

    return None if frames is None else Clip(frames.shape[1], frames.shape[2], len(frames))


def request_for(case: str, limits):
    """The request of a whole job."""
    from model.io.video import read_clip, read_image
    from model.pipeline.request import Request
    from model.spec.params import GenerationParams
    from model.spec.resolve import Inputs, resolve

    said, refines = CASES[case], case.startswith("refine")
    image = _input(case, "condition.png" if refines else "input.png", read_image)
    video = _input(case.removesuffix("_nokv"), "input.npz", read_clip)
    condition = _input(case, "condition.npz", read_clip)
    params = GenerationParams(
        task="refine" if refines else None,
        resolution=said.get("resolution"),
        height=said.get("height"),
        width=said.get("width"),
        num_frames=said.get("num_frames"),
        num_condition_frames=None if refines and condition is None else said.get("num_cond_frames"),
        num_inference_steps=said["num_inference_steps"],
        guidance_scale=said.get("guidance_scale"),
        distilled=case.endswith("_distill"),
        t_thresh=said.get("t_thresh"),
        spatial_refine_only=said.get("spatial_refine_only", False),
        condition_cache=said.get("use_kv_cache", True),
        enhance_hf=said.get("enhance_hf", True),
    )
    inputs = Inputs(image=size_of(image), video=clip_of(video), condition_video=clip_of(condition))
    return Request(
        plan=resolve(params, inputs, limits),
        prompts=(said["prompt"],),
        seed=said["seed"],
        negative_prompt=said.get("negative_prompt"),
        image=image,
        video=video,
        condition_video=condition,
    )


def expected_latents(case: str):
    """The final latents of a whole job, and how to thin ours out to the rows and columns that were kept."""
    expected = load_file(PARITY / "expected" / f"{case}.safetensors")["latents"]
    whole = tuple(CASES[case]["latents_shape"])
    step = whole[-1] // expected.shape[-1]
    return expected, whole, step


def _input(case: str, suffix: str, read):
    path = PARITY / "expected" / f"{case}_{suffix}"
    return read(path) if path.exists() else None
