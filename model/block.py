"""A block of the transformer: self-attention, cross-attention to the text, feed-forward.

`model.dit` stacks them. The modules see only their own tokens, in whatever order, and leave who attends to
whom to the layout that they are given.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.attention import KeysValues
from model.config import DitConfig
from model.layers import AdaLN, HeadNorm, LayerNormFp32, SwiGLU, add_gated, modulate
from model.rope import rotate
from model.tokens import Layout


class TextKeysValues(NamedTuple):
    """The text as one block attends to it; `mask` only where padding is left out of the keys."""

    k: Float[Tensor, "b a l d"]
    v: Float[Tensor, "b a l d"]
    mask: Bool[Tensor, "b 1 1 l"] | None


class SelfAttention(nn.Module):
    """Attention among the tokens of a video."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_heads
        self.qkv = nn.Linear(width, 3 * width, dtype=dtype)
        self.q_norm = HeadNorm(config.head_dim, dtype)
        self.k_norm = HeadNorm(config.head_dim, dtype)
        self.proj = nn.Linear(width, width, dtype=dtype)

    def forward(
        self, x: Float[Tensor, "b g m c"], layout: Layout, past: KeysValues | None
    ) -> tuple[Float[Tensor, "b g m c"], KeysValues]:
        """The update of each token, and the keys and values that were attended to."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        q, k = rotate(self.q_norm(q), layout.turn), rotate(self.k_norm(k), layout.turn)
        out, seen = layout.attend(q, k, v, past)
        return self.proj(out.flatten(-2)), seen


class CrossAttention(nn.Module):
    """Attention of video tokens to the text."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_heads
        self.q_linear = nn.Linear(width, width, dtype=dtype)
        self.kv_linear = nn.Linear(width, 2 * width, dtype=dtype)
        self.q_norm = HeadNorm(config.head_dim, dtype)
        self.k_norm = HeadNorm(config.head_dim, dtype)
        self.proj = nn.Linear(width, width, dtype=dtype)

    def read(self, text: Float[Tensor, "b l c"], mask: Bool[Tensor, "b 1 1 l"] | None) -> TextKeysValues:
        """Keys and values of the text: the same at every step."""
        k, v = self.kv_linear(text).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        return TextKeysValues(self.k_norm(k).transpose(1, 2), v.transpose(1, 2), mask)

    def forward(self, x: Float[Tensor, "b g m c"], text: TextKeysValues) -> Float[Tensor, "b g m c"]:
        """The update of each token."""
        q = self.q_norm(self.q_linear(x).unflatten(-1, (self.num_heads, -1)))
        out = F.scaled_dot_product_attention(
            q.flatten(1, 2).transpose(1, 2), text.k, text.v, attn_mask=text.mask
        )
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(-2).view_as(x))
        return projected


class Block(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        width = config.hidden_size
        self.adaLN_modulation = AdaLN(config.adaln_tembed_dim, width, 6)
        self.pre_crs_attn_norm = LayerNormFp32(width, dtype)
        self.attn = SelfAttention(config, dtype)
        self.cross_attn = CrossAttention(config, dtype)
        self.ffn = SwiGLU(width, config.ffn_size, dtype)

    def forward(
        self,
        x: Float[Tensor, "b g m c"],
        time: Float[Tensor, "b g t"],
        layout: Layout,
        text: TextKeysValues | None,
        past: KeysValues | None,
    ) -> tuple[Float[Tensor, "b g m c"], KeysValues]:
        """The tokens after this block, and the keys and values of its self-attention.

        Condition frames, and all frames where there is no text, are not told of the text.
        """
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = self.adaLN_modulation(time)
        update, seen = self.attn(modulate(x, shift_attn, scale_attn).to(x.dtype), layout, past)
        x = add_gated(x, gate_attn, update)
        if text is not None:
            noise = x[:, layout.num_condition_groups :]
            noise += self.cross_attn(self.pre_crs_attn_norm(noise), text)
        x = add_gated(x, gate_ffn, self.ffn(modulate(x, shift_ffn, scale_ffn).to(x.dtype)))
        return x, seen
