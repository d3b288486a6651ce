"""A block of the transformer: self-attention, cross-attention to the text, feed-forward.

`model.dit` stacks them. The modules see only their own tokens, in whatever order, and leave who attends to
whom to the layout that they are given. What is before, between and after the two attentions stands in three
functions of tensors alone, which `model.fused` may have compiled.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.transformer.attention import KeysValues, TextKeysValues, attend_to_text
from model.transformer.config import DitConfig
from model.transformer.layers import AdaLN, HeadNorm, LayerNormFp32, SwiGLU, add_gated, add_to_last, modulate
from model.transformer.rope import rotate
from model.transformer.token_layout import Layout


class SelfAttention(nn.Module):
    """The matrices around the attention among the tokens of a video."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_heads
        self.qkv = nn.Linear(width, 3 * width, dtype=dtype)
        self.q_norm = HeadNorm(config.head_dim, dtype)
        self.k_norm = HeadNorm(config.head_dim, dtype)
        self.proj = nn.Linear(width, width, dtype=dtype)

    def ask(
        self, x: Float[Tensor, "b g m c"], turn: Float[Tensor, "g m 1 half 2"]
    ) -> tuple[Float[Tensor, "b g m a d"], Float[Tensor, "b g m a d"], Float[Tensor, "b g m a d"]]:
        """Query, key and value of each token."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        return rotate(self.q_norm(q), turn), rotate(self.k_norm(k), turn), v

    def answer(self, out: Float[Tensor, "b g m a d"]) -> Float[Tensor, "b g m c"]:
        """The update of each token, from what its heads attended to."""
        update: Tensor = self.proj(out.flatten(-2))
        return update


class CrossAttention(nn.Module):
    """The matrices around the attention of video tokens to the text."""

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

    def ask(self, x: Float[Tensor, "b g m c"]) -> Float[Tensor, "b g m a d"]:
        """Query of each token."""
        q: Tensor = self.q_norm(self.q_linear(x).unflatten(-1, (self.num_heads, -1)))
        return q

    def answer(self, out: Float[Tensor, "b g m a d"]) -> Float[Tensor, "b g m c"]:
        """The update of each token, from what its heads attended to."""
        update: Tensor = self.proj(out.flatten(-2))
        return update


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
        shift, scale, gate, *for_ffn = self.adaLN_modulation(time)
        q, k, v = self.before(x, shift, scale, layout.turn)
        out, seen = layout.attend(q, k, v, past)
        x, asked = self.between(x, gate, out, None if text is None else layout.num_condition_groups)
        heard = None if text is None or asked is None else attend_to_text(asked, text)
        return self.after(x, heard, *for_ffn), seen

    def before(
        self,
        x: Float[Tensor, "b g m c"],
        shift: Float[Tensor, "b g 1 c"],
        scale: Float[Tensor, "b g 1 c"],
        turn: Float[Tensor, "g m 1 half 2"],
    ) -> tuple[Float[Tensor, "b g m a d"], Float[Tensor, "b g m a d"], Float[Tensor, "b g m a d"]]:
        """Query, key and value for self-attention."""
        return self.attn.ask(modulate(x, shift, scale).to(x.dtype), turn)

    def between(
        self,
        x: Float[Tensor, "b g m c"],
        gate: Float[Tensor, "b g 1 c"],
        out: Float[Tensor, "b g m a d"],
        first_told: int | None,
    ) -> tuple[Float[Tensor, "b g m c"], Float[Tensor, "b told m a d"] | None]:
        """The tokens after self-attention, and the query to the text from the first group told of it."""
        x = add_gated(x, gate, self.attn.answer(out))
        if first_told is None:
            return x, None
        return x, self.cross_attn.ask(self.pre_crs_attn_norm(x[:, first_told:]))

    def after(
        self,
        x: Float[Tensor, "b g m c"],
        heard: Float[Tensor, "b told m a d"] | None,
        shift: Float[Tensor, "b g 1 c"],
        scale: Float[Tensor, "b g 1 c"],
        gate: Float[Tensor, "b g 1 c"],
    ) -> Float[Tensor, "b g m c"]:
        """The tokens after cross-attention and feed-forward."""
        if heard is not None:
            x = add_to_last(x, self.cross_attn.answer(heard))
        return add_gated(x, gate, self.ffn(modulate(x, shift, scale).to(x.dtype)))
