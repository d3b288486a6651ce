"""Define a transformer block: self-attention, cross-attention to the text, feed-forward.

A block sees tokens without knowing their order; the layout that it is given decides which token attends to
which. Everything around the two attentions is in three methods of tensors alone, which
`model.transformer.compile` can replace by compiled ones.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.transformer.attention import KV, TextKV, attend_to_text
from model.transformer.config import DitConfig
from model.transformer.layers import (
    AdaLN,
    HeadNorm,
    LayerNormFp32,
    SwiGLU,
    add_gated,
    add_to_last,
    modulate,
)
from model.transformer.rope import rotate
from model.transformer.token_layout import Layout

QKV = tuple[Float[Tensor, "b g m a d"], Float[Tensor, "b g m a d"], Float[Tensor, "b g m a d"]]


class SelfAttention(nn.Module):
    """The projections around self-attention. Attribute names are those of the checkpoint."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_heads
        self.qkv = nn.Linear(width, 3 * width, dtype=dtype)
        self.q_norm = HeadNorm(config.head_dim, dtype)
        self.k_norm = HeadNorm(config.head_dim, dtype)
        self.proj = nn.Linear(width, width, dtype=dtype)

    def project_qkv(self, x: Float[Tensor, "b g m c"], rotation: Float[Tensor, "g m 1 half 2"]) -> QKV:
        """Return query, key and value of each token, with query and key normalised and rotated."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        del x  # the caller does not keep it either
        return rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation), v

    def project_output(self, out: Float[Tensor, "b g m a d"]) -> Float[Tensor, "b g m c"]:
        """Apply the output projection to the heads of each token."""
        update: Tensor = self.proj(out.flatten(-2))
        return update


class CrossAttention(nn.Module):
    """The projections around cross-attention to the text. Attribute names are those of the checkpoint."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_heads
        self.q_linear = nn.Linear(width, width, dtype=dtype)
        self.kv_linear = nn.Linear(width, 2 * width, dtype=dtype)
        self.q_norm = HeadNorm(config.head_dim, dtype)
        self.k_norm = HeadNorm(config.head_dim, dtype)
        self.proj = nn.Linear(width, width, dtype=dtype)

    def project_kv(self, text: Float[Tensor, "b l c"], mask: Bool[Tensor, "b 1 1 l"] | None) -> TextKV:
        """Return keys and values of the text, which are the same at every step."""
        k, v = self.kv_linear(text).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        # A view of the values would keep the keys before their norm as well, since both are one product.
        return TextKV(self.k_norm(k).transpose(1, 2), v.contiguous().transpose(1, 2), mask)

    def project_q(self, x: Float[Tensor, "b g m c"]) -> Float[Tensor, "b g m a d"]:
        """Return the normalised query of each token."""
        q: Tensor = self.q_norm(self.q_linear(x).unflatten(-1, (self.num_heads, -1)))
        return q

    def project_output(self, out: Float[Tensor, "b g m a d"]) -> Float[Tensor, "b g m c"]:
        """Apply the output projection to the heads of each token."""
        update: Tensor = self.proj(out.flatten(-2))
        return update


class Block(nn.Module):
    """A transformer block. Attribute names are those of the checkpoint."""

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
        text_kv: TextKV | None,
        condition_kv: KV | None = None,
        kv_out: list[KV] | None = None,
    ) -> Float[Tensor, "b g m c"]:
        """Return the tokens after this block.

        Tokens attend to `condition_kv` as well, if given. Condition frames do not attend to the text, and
        without `text_kv` no frame does. The keys and values of self-attention are appended to `kv_out`, if
        given.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.adaLN_modulation(time)
        # Queries, keys, values and the result of self-attention are passed on without a variable here, so
        # that each is freed after its last use.
        x, text_q = self.between_attentions(
            x,
            gate,
            layout.attend(self.before_attention(x, shift, scale, layout.rotation), condition_kv, kv_out),
            None if text_kv is None else layout.num_condition_groups,
        )
        text_out = None if text_q is None or text_kv is None else attend_to_text(text_q, text_kv)
        del text_q
        return self.after_attentions(x, text_out, ffn_shift, ffn_scale, ffn_gate)

    def before_attention(
        self,
        x: Float[Tensor, "b g m c"],
        shift: Float[Tensor, "b g 1 c"],
        scale: Float[Tensor, "b g 1 c"],
        rotation: Float[Tensor, "g m 1 half 2"],
    ) -> QKV:
        """Return query, key and value of self-attention."""
        return self.attn.project_qkv(modulate(x, shift, scale).to(x.dtype), rotation)

    def between_attentions(
        self,
        x: Float[Tensor, "b g m c"],
        gate: Float[Tensor, "b g 1 c"],
        attention_out: Float[Tensor, "b g m a d"],
        num_condition_groups: int | None,
    ) -> tuple[Float[Tensor, "b g m c"], Float[Tensor, "b noise_g m a d"] | None]:
        """Return the tokens after self-attention, and the query of cross-attention of the noise groups.

        No query is computed if `num_condition_groups` is None.
        """
        x = add_gated(x, gate, self.attn.project_output(attention_out))
        if num_condition_groups is None:
            return x, None
        return x, self.cross_attn.project_q(self.pre_crs_attn_norm(x[:, num_condition_groups:]))

    def after_attentions(
        self,
        x: Float[Tensor, "b g m c"],
        text_out: Float[Tensor, "b noise_g m a d"] | None,
        shift: Float[Tensor, "b g 1 c"],
        scale: Float[Tensor, "b g 1 c"],
        gate: Float[Tensor, "b g 1 c"],
    ) -> Float[Tensor, "b g m c"]:
        """Return the tokens after cross-attention, if `text_out` is given, and the feed-forward."""
        if text_out is not None:
            x = add_to_last(x, self.cross_attn.project_output(text_out))
        return add_gated(x, gate, self.ffn(modulate(x, shift, scale).to(x.dtype)))
