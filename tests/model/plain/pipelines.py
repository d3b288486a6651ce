"""Every task from its prompt to its latents and frames, written out.

A `PlainPipeline` has no options beyond those of the tasks, keeps everything on the CPU and the whole clip in
memory. Frames between stages are float [f, H, W, 3] in [0, 1]; latents are [1, 16, f, h, w], normalised.
"""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLWan
from PIL import Image
from transformers import AutoTokenizer, UMT5EncoderModel

from tests.model.plain import schedules
from tests.model.plain.transformer import load_transformer

TOKENS = 512


@dataclass(frozen=True)
class Task:
    """What a request can say, with the released defaults."""

    prompts: tuple[str, ...]
    seed: int
    height: int
    width: int
    num_frames: int = 93
    steps: int = 50
    guidance: float = 4.0
    negative_prompt: str = ""
    distilled: bool = False
    segments: int = 1
    condition_frames: int = 13
    condition_cache: bool = True
    enhance_hf: bool = True
    image: Any = None  # uint8 array [H, W, 3]
    video: Any = None  # uint8 array [f, H, W, 3]
    refine: PlainRefinement | None = None
    eight_bits: bool = False  # frames between stages and segments, as in the published code


@dataclass(frozen=True)
class PlainRefinement:
    height: int
    width: int
    steps: int = 50
    t_thresh: float = 0.5
    doubles: bool = True


@dataclass
class Result:
    """Latents of each segment and stage in the order in which they were made, and the joined frames."""

    latents: list[torch.Tensor] = field(default_factory=list)
    refined_latents: list[torch.Tensor] = field(default_factory=list)
    frames: list[torch.Tensor] = field(default_factory=list)

    def joined(self):
        return torch.cat(self.frames)


class PlainPipeline:
    def __init__(self, checkpoint, dtype=torch.float64):
        self.checkpoint = Path(checkpoint)
        self.transformer = load_transformer(self.checkpoint, dtype)
        self.vae = AutoencoderKLWan.from_pretrained(self.checkpoint / "vae").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.checkpoint / "tokenizer")
        self.text_encoder = UMT5EncoderModel.from_pretrained(self.checkpoint / "text_encoder").eval()
        scheduler = json.loads((self.checkpoint / "scheduler" / "scheduler_config.json").read_text())
        self.shift = scheduler["shift"]
        self.mean = torch.tensor(self.vae.config.latents_mean).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(self.vae.config.latents_std).view(1, -1, 1, 1, 1)

    # ---------------------------------------------------------------- tasks

    @torch.no_grad()
    def generate(self, task):
        """Text, image or clip to one segment or several, each refined before the next begins if asked."""
        generator = torch.Generator().manual_seed(task.seed)
        result = Result()
        tail = (
            None
            if task.video is None
            else lanczos(task.video[-task.condition_frames :], task.height, task.width)
        )
        refined_tail = None
        for segment in range(task.segments):
            prompt = task.prompts[segment] if len(task.prompts) > 1 else task.prompts[0]
            frames, latents = self.segment(task, prompt, tail, segment, generator)
            result.latents.append(latents)
            repeated = task.condition_frames if segment else 0
            handed = through_eight_bits(frames) if task.eight_bits else frames
            tail = handed[-task.condition_frames :]
            if task.refine:
                held = self.held(task, segment, refined_tail)
                frames, latents = self.refine_clip(handed, prompt, held, task.refine, generator)
                result.refined_latents.append(latents)
                repeated = len(held) if segment else 0
                handed = through_eight_bits(frames) if task.eight_bits else frames
                refined_tail = handed[-task.condition_frames * (2 if task.refine.doubles else 1) :]
            result.frames.append(frames[repeated:])
        return result

    @torch.no_grad()
    def refine(self, clip, prompt, seed, refinement, condition=None):
        """An uploaded clip; `condition` is uint8 [k, H, W, 3], the last k frames already cut off."""
        generator = torch.Generator().manual_seed(seed)
        held = None if condition is None else lanczos(condition, refinement.height, refinement.width)
        frames = torch.from_numpy(clip).float() / 255
        return self.refine_clip(frames, prompt, held, refinement, generator)

    def held(self, task, segment, refined_tail):
        """The frames that begin a refined segment: the image at first, then the end of the one before."""
        if segment:
            return refined_tail
        if task.image is None:
            return None
        return lanczos(task.image[None], task.refine.height, task.refine.width)

    # ---------------------------------------------------------------- one segment

    def segment(self, task, prompt, tail, number, generator):
        clean_pixels = tail
        if number == 0 and task.image is not None:
            clean_pixels = lanczos(task.image[None], task.height, task.width)
        shape = (1, 16, (task.num_frames - 1) // 4 + 1, task.height // 8, task.width // 8)
        latents = torch.randn(shape, generator=generator)
        clean = None if clean_pixels is None else self.encode(clean_pixels, generator)
        continues = tail is not None
        timesteps, sigmas = self.schedule(task, continues)
        guidance = 1.0 if task.distilled else task.guidance
        texts = [self.text(task.negative_prompt)] if guidance > 1 else []
        texts.append(self.text(prompt))
        transformer = self.lora("cfg_step_lora") if task.distilled else self.transformer
        remember = continues and task.condition_cache
        latents = self.denoise(
            transformer, latents, clean, texts, timesteps, sigmas, guidance, remember, None
        )
        return self.decode(latents), latents

    def schedule(self, task, continues):
        if task.distilled:
            return schedules.distilled(task.steps, self.shift)
        if continues and task.enhance_hf:
            return schedules.with_enhance_hf(task.steps, self.shift)
        return schedules.standard(task.steps, self.shift)

    def refine_clip(self, frames, prompt, held, refinement, generator):
        """`frames` float [n, H, W, 3]; `held` float [k, H', W', 3] of the wanted size, or None."""
        wanted = len(frames) * (2 if refinement.doubles else 1)
        k = 0 if held is None else len(held)
        clip = upsample(frames, wanted, refinement.height, refinement.width)

        clean_latents, in_front, noise_latents, at_back = refine_layout(wanted, k)
        clip = torch.cat([clip[:1].expand(in_front, -1, -1, -1), clip, clip[-1:].expand(at_back, -1, -1, -1)])

        latent = self.encode(clip, generator)
        assert latent.shape[2] == clean_latents + noise_latents
        noise = torch.randn(latent.shape, generator=generator)
        start = (1 - refinement.t_thresh) * latent + refinement.t_thresh * noise
        clean = None
        if held is not None:
            clean = self.encode(torch.cat([held[:1].expand(in_front, -1, -1, -1), held]), generator)
            assert clean.shape[2] == clean_latents
        timesteps, sigmas = schedules.refinement(refinement.steps, self.shift, refinement.t_thresh)
        transformer = self.lora("refinement_lora")
        latents = self.denoise(
            transformer, start, clean, [self.text(prompt)], timesteps, sigmas, 1.0, False, transformer.bricks
        )
        return self.decode(latents)[in_front : in_front + wanted], latents

    # ---------------------------------------------------------------- the loop

    def denoise(self, transformer, latents, clean, texts, timesteps, sigmas, guidance, remember, bricks):
        """`texts`: (hidden states, mask) of the negative prompt if there is guidance, then of the prompt."""
        k = 0 if clean is None else clean.shape[2]
        x = latents.clone()
        if k:
            x[:, :, :k] = clean
        cache = transformer.remember(clean[0]) if remember else None
        seen = k if remember else 0  # the transformer is given the frames from here on
        for step, t in enumerate(timesteps):
            times = torch.full((1, x.shape[2]), float(t))
            times[:, :k] = 0
            predictions = [
                transformer(
                    x[:, :, seen:],
                    times[:, seen:],
                    text,
                    mask,
                    condition=k - seen,
                    cache=cache,
                    bricks=bricks,
                ).float()
                for text, mask in texts
            ]
            v = predictions[-1] if guidance <= 1 else guided(predictions[0], predictions[1], guidance)
            x[:, :, k:] = x[:, :, k:] - (sigmas[step + 1] - sigmas[step]) * v[:, :, k - seen :]
        return x

    # ---------------------------------------------------------------- text and pixels

    def lora(self, name):
        return self.transformer.with_lora(self.checkpoint / "lora" / f"{name}.safetensors")

    def text(self, prompt):
        cleaned = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
        cleaned = re.sub(r"\s+", " ", cleaned)
        tokens = self.tokenizer(
            cleaned, max_length=TOKENS, padding="max_length", truncation=True, return_tensors="pt"
        )
        hidden = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return hidden, tokens.attention_mask

    def encode(self, frames, generator):
        """Frames [f, H, W, 3] in [0, 1] → sampled, normalised latents."""
        pixels = frames.permute(3, 0, 1, 2)[None] * 2 - 1
        posterior = self.vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        return (posterior.mean + posterior.std * noise - self.mean) / self.std

    def decode(self, latents):
        pixels = self.vae.decode(latents * self.std + self.mean).sample[0]
        return ((pixels + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0)


def guided(u, v, scale):
    """Guidance with the unconditional prediction scaled onto the conditional one, sample by sample."""
    out = []
    for u1, v1 in zip(u, v, strict=True):
        s = (u1 * v1).sum() / ((u1 * u1).sum() + 1e-8)
        out.append(s * u1 + scale * (v1 - s * u1))
    return torch.stack(out)


def refine_layout(wanted, k):
    """Clean latents, frames padded in front, noise latents, frames padded at the back."""
    clean_latents = 0 if k == 0 else up_to_four(1 + math.ceil((k - 1) / 4))
    in_front = 0 if k == 0 else 1 + 4 * (clean_latents - 1) - k
    noise_latents = up_to_four(math.ceil((wanted - k) / 4))
    if k == 0 and 1 + 4 * (noise_latents - 1) < wanted:
        noise_latents += 4
    return clean_latents, in_front, noise_latents, 4 * noise_latents - (wanted - k)


def up_to_four(number):
    while number % 4:
        number += 1
    return number


def bucket(table, height, width):
    """[height, width] of the ratio nearest to height / width; the first of equals."""
    nearest, found = math.inf, None
    for ratio, size in table.items():
        away = abs(float(ratio) - height / width)
        if away < nearest:
            nearest, found = away, size
    return found


def lanczos(frames, height, width):
    """uint8 [f, H, W, 3] → float [f, height, width, 3] in [0, 1], resized as 8-bit images."""
    resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    return torch.from_numpy(np.stack([np.asarray(frame) for frame in resized])).float() / 255


def through_eight_bits(frames):
    return (frames * 255).to(torch.uint8).float() / 255


def upsample(frames, wanted, height, width):
    """Bilinear in the plane, then linear in time; corners stay corners."""
    plane = F.interpolate(frames.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=True)
    volume = plane.permute(1, 0, 2, 3)[None]
    longer = F.interpolate(volume, (wanted, height, width), mode="trilinear", align_corners=True)
    return longer[0].permute(1, 2, 3, 0)
