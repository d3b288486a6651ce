"""The transformer, one sample, one head and one query brick at a time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.model.plain.attention import PlainBricks, attend_densely, attend_in_bricks

EPS = 1e-6


@dataclass(frozen=True)
class PlainTransformer:
    config: dict[str, Any]
    weights: dict[str, torch.Tensor]
    lora: dict[str, torch.Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    rounds_time_to: torch.dtype = torch.float32

    @property
    def head_dim(self):
        return self.config["hidden_size"] // self.config["num_heads"]

    @property
    def bricks(self):
        params = self.config["bsa_params"]
        sizes = tuple(params["chunk_3d_shape_q"]), tuple(params["chunk_3d_shape_k"])
        return PlainBricks(*sizes, params.get("sparsity"), params.get("cdf_threshold"))

    def with_lora(self, path):
        return replace(self, lora=load_file(path))

    # ---------------------------------------------------------------- the whole call

    def __call__(self, latents, timesteps, text, mask, *, condition=0, cache=None, bricks=None):
        """latents [b, C, f, H, W], timesteps [b, f], text [b, l, text width], mask [b, l] → [b, C, f, H, W].

        `condition` latent frames are clean. With `cache` (a list of blocks' k and v, as `remember` returns)
        the clean frames are not among `latents`.
        """
        samples = [
            self.sample(latents[b], timesteps[b], text[b], mask[b], condition, cache, bricks)[0]
            for b in range(len(latents))
        ]
        return torch.stack(samples)

    def remember(self, clean_latents):
        """k [a, n, d] (before RoPE) and v of every block for clean frames [C, f, H, W], without text."""
        frames = clean_latents.shape[1]
        times = torch.zeros(frames)
        return self.sample(clean_latents, times, None, None, frames, None, None)[1]

    def sample(self, latents, times, text, mask, condition, cache, bricks):
        frames, rows, columns = self.grid(latents)
        x = torch.cat([self.patches(latents[:, f]) for f in range(frames)])
        time = torch.stack([self.time_embedding(t) for t in times])
        frame_of = torch.arange(frames).repeat_interleave(rows * columns)
        words = None if text is None else self.words(text, mask)
        places = self.places(frames, rows, columns, self.cached_frames(cache, rows * columns))
        kept = []
        for i in range(self.config["depth"]):
            earlier = cache[i] if cache else None
            x, k, v = self.block(i, x, time, frame_of, words, places, condition, earlier, bricks)
            kept.append((k, v))
        return self.last(x, time, frame_of, (frames, rows, columns)), kept

    def grid(self, latents):
        _, f, h, w = latents.shape
        pf, ph, pw = self.config["patch_size"]
        assert pf == 1
        return f, h // ph, w // pw

    @staticmethod
    def cached_frames(cache, tokens_of_a_frame):
        return cache[0][0].shape[1] // tokens_of_a_frame if cache else 0

    # ---------------------------------------------------------------- going in

    def patches(self, frame):
        """One frame [C, H, W] → its tokens [h·w, c]: the Conv3d, patch by patch."""
        _, ph, pw = self.config["patch_size"]
        weight, bias = self.w("x_embedder.proj.weight"), self.w("x_embedder.proj.bias")
        channels, height, width = frame.shape
        cut = frame.to(self.dtype).reshape(channels, height // ph, ph, width // pw, pw)
        flat = cut.permute(1, 3, 0, 2, 4).reshape(-1, channels * ph * pw)
        return flat @ weight.reshape(len(weight), -1).T + bias

    def time_embedding(self, timestep):
        size = self.config["frequency_embedding_size"]
        t = torch.as_tensor(timestep).to(self.rounds_time_to).to(self.dtype)
        angles = torch.stack([t * 10000.0 ** (-i / (size / 2)) for i in range(size // 2)])
        hidden = self.linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()]))
        return self.linear("t_embedder.mlp.2", silu(hidden))

    def words(self, text, mask):
        """Projected text tokens; padding is zero and attended, or is left out altogether."""
        hidden = self.linear("y_embedder.y_proj.0", text.to(self.dtype))
        projected = self.linear("y_embedder.y_proj.2", gelu_tanh(hidden))
        if self.config["text_tokens_zero_pad"]:
            return torch.stack([row if real else row * 0 for row, real in zip(projected, mask, strict=True)])
        return projected[mask.bool()]

    def places(self, frames, rows, columns, first):
        """(frame, row, column) of every token, those of the cached frames first."""
        axes = torch.arange(first + frames), torch.arange(rows), torch.arange(columns)
        return torch.cartesian_prod(*axes)

    # ---------------------------------------------------------------- one block

    def block(self, i, x, time, frame_of, words, places, condition, earlier, bricks):
        name = f"blocks.{i}"
        modulation = self.linear(f"{name}.adaLN_modulation.1", silu(time))[frame_of].chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation

        attended, k, v = self.self_attention(
            f"{name}.attn", norm(x) * (1 + scale_a) + shift_a, places, frame_of, condition, earlier, bricks
        )
        x = x + gate_a * attended

        if words is not None:
            weight, bias = (
                self.w(f"{name}.pre_crs_attn_norm.weight"),
                self.w(f"{name}.pre_crs_attn_norm.bias"),
            )
            read = self.cross_attention(f"{name}.cross_attn", norm(x) * weight + bias, words)
            x = x + torch.where((frame_of >= condition)[:, None], read, 0.0)

        h = norm(x) * (1 + scale_f) + shift_f
        gated = silu(self.linear(f"{name}.ffn.w1", h)) * self.linear(f"{name}.ffn.w3", h)
        return x + gate_f * self.linear(f"{name}.ffn.w2", gated), k, v

    def self_attention(self, name, x, places, frame_of, condition, earlier, bricks):
        q, k, v = self.linear(f"{name}.qkv", x).chunk(3, dim=-1)
        outs, ks, vs = [], [], []
        for head in range(self.config["num_heads"]):
            mine = slice(head * self.head_dim, (head + 1) * self.head_dim)
            q1 = rms(q[:, mine]) * self.w(f"{name}.q_norm.weight")
            k1 = rms(k[:, mine]) * self.w(f"{name}.k_norm.weight")
            v1 = v[:, mine]
            ks.append(k1)
            vs.append(v1)
            if earlier:
                k1 = torch.cat([earlier[0][head], k1])
                v1 = torch.cat([earlier[1][head], v1])
            q1, k1 = self.rope(q1, places[-len(q1) :]), self.rope(k1, places)
            outs.append(self.attend(q1, k1, v1, places, frame_of, condition, bricks))
        return self.linear(f"{name}.proj", torch.cat(outs, dim=-1)), torch.stack(ks), torch.stack(vs)

    def attend(self, q, k, v, places, frame_of, condition, bricks):
        if bricks is not None and len(frame_of.unique()) > 1:
            return attend_in_bricks(q, k, v, places, condition, bricks)
        clean = int((frame_of < condition).sum())
        parts = [attend_densely(q[:clean], k[:clean], v[:clean])] if clean else []
        if clean < len(q):
            parts.append(attend_densely(q[clean:], k, v))
        return torch.cat(parts)

    def rope(self, x, places):
        """Turn each pair (2i, 2i + 1) of each axis by position · 10000^(−2i/D)."""
        m = self.head_dim // 6
        widths = (self.head_dim - 4 * m, 2 * m, 2 * m)
        out, start = x.clone(), 0
        for axis, width in enumerate(widths):
            position = places[:, axis].to(self.dtype)
            for i in range(width // 2):
                angle = position * 10000.0 ** (-2 * i / width)
                even, odd = x[:, start + 2 * i], x[:, start + 2 * i + 1]
                out[:, start + 2 * i] = even * angle.cos() - odd * angle.sin()
                out[:, start + 2 * i + 1] = even * angle.sin() + odd * angle.cos()
            start += width
        return out

    def cross_attention(self, name, x, words):
        q = self.linear(f"{name}.q_linear", x)
        k, v = self.linear(f"{name}.kv_linear", words).chunk(2, dim=-1)
        outs = []
        for head in range(self.config["num_heads"]):
            mine = slice(head * self.head_dim, (head + 1) * self.head_dim)
            q1 = rms(q[:, mine]) * self.w(f"{name}.q_norm.weight")
            k1 = rms(k[:, mine]) * self.w(f"{name}.k_norm.weight")
            outs.append(attend_densely(q1, k1, v[:, mine]))
        return self.linear(f"{name}.proj", torch.cat(outs, dim=-1))

    # ---------------------------------------------------------------- coming out

    def last(self, x, time, frame_of, grid):
        shift, scale = self.linear("final_layer.adaLN_modulation.1", silu(time))[frame_of].chunk(2, dim=-1)
        values = self.linear("final_layer.linear", norm(x) * (1 + scale) + shift)
        (f, h, w), (pf, ph, pw), channels = grid, self.config["patch_size"], self.config["out_channels"]
        patches = values.reshape(f, h, w, pf, ph, pw, channels)
        return patches.permute(6, 0, 3, 1, 4, 2, 5).reshape(channels, f * pf, h * ph, w * pw)

    # ---------------------------------------------------------------- weights

    def w(self, name):
        return self.weights[name].to(self.dtype)

    def linear(self, name, x):
        """The base projection, plus the LoRA's two thin ones if the active file names this module."""
        y = x @ self.w(f"{name}.weight").T
        if f"{name}.bias" in self.weights:
            y = y + self.w(f"{name}.bias")
        key = "lora___lorahyphen___" + name.replace(".", "___lorahyphen___")
        if f"{key}.lora_down.weight" not in self.lora:
            return y
        thin = x @ self.lora[f"{key}.lora_down.weight"].to(self.dtype).T
        ups = self.lora_ups(key)
        blocks = [part @ up.T for part, up in zip(thin.chunk(len(ups), dim=-1), ups, strict=True)]
        return y + float(self.lora[f"{key}.alpha_scale"]) * torch.cat(blocks, dim=-1)

    def lora_ups(self, key):
        if f"{key}.lora_up.weight" in self.lora:
            return [self.lora[f"{key}.lora_up.weight"].to(self.dtype)]
        count = sum(name.startswith(f"{key}.lora_up.blocks.") for name in self.lora)
        return [self.lora[f"{key}.lora_up.blocks.{i}.weight"].to(self.dtype) for i in range(count)]


def load_transformer(checkpoint, dtype=torch.float64):
    folder = Path(checkpoint) / "dit"
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        weights |= load_file(shard)
    return PlainTransformer(json.loads((folder / "config.json").read_text()), weights, dtype=dtype)


def norm(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def silu(x):
    return x / (1 + (-x).exp())


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
