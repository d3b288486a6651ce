"""Define the small parts of the transformer: modulation, norms, feed-forward, embeddings, final layer.

Attribute names are those of the checkpoint. Where LongCat-Video computes in fp32 (timestep embedding,
modulation, final layer) the parameters are fp32 whatever the dtype of the model.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.transformer.config import Triple

NORM_EPS = 1e-6
MAX_PERIOD = 10000.0


def modulate(
    x: Float[Tensor, "b g m c"], shift: Float[Tensor, "b g 1 c"], scale: Float[Tensor, "b g 1 c"]
) -> Float[Tensor, "b g m c"]:
    """Apply LayerNorm without parameters, then scale and shift. The result is fp32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def add_gated(
    x: Float[Tensor, "b g m c"], gate: Float[Tensor, "b g 1 c"], update: Float[Tensor, "b g m c"]
) -> Float[Tensor, "b g m c"]:
    """Return the gated residual x + gate · update, added in fp32, in the dtype of x."""
    return (x + gate * update).to(x.dtype)


def add_to_last(
    x: Float[Tensor, "b g m c"], update: Float[Tensor, "b noise_g m c"]
) -> Float[Tensor, "b g m c"]:
    """Add the update to the last groups of x, as many as the update has, and leave the others unchanged."""
    unchanged = x.shape[1] - update.shape[1]
    if not unchanged:
        return x + update
    return torch.cat([x[:, :unchanged], x[:, unchanged:] + update], dim=1)


class HeadNorm(nn.Module):
    """RMSNorm over each attention head, computed in fp32."""

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(head_dim, dtype=dtype))

    def forward(self, x: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest d"]:
        """Normalise in fp32, round to the dtype of x, then multiply by the weight."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=NORM_EPS).to(x.dtype) * self.weight


class LayerNormFp32(nn.LayerNorm):
    """LayerNorm with weight and bias, computed in fp32."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__(width, eps=NORM_EPS, dtype=dtype)

    def forward(self, x: Float[Tensor, "*rest c"]) -> Float[Tensor, "*rest c"]:
        """Normalise x, and return the dtype of x."""
        normed = F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)


class SwiGLU(nn.Module):
    """The feed-forward w2(silu(w1 x) · w3 x)."""

    def __init__(self, width: int, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False, dtype=dtype)
        self.w2 = nn.Linear(hidden, width, bias=False, dtype=dtype)
        self.w3 = nn.Linear(width, hidden, bias=False, dtype=dtype)

    def forward(self, x: Float[Tensor, "*rest c"]) -> Float[Tensor, "*rest c"]:
        """Return the update of each token, in the dtype of the weights."""
        hidden = F.silu(self.w1(x), inplace=True)  # in place: this is where a forward needs most memory
        hidden *= self.w3(x)
        out: Tensor = self.w2(hidden)
        return out


class PatchEmbedder(nn.Module):
    """The projection from the values of a patch to a token, stored as a convolution."""

    def __init__(self, channels: int, width: int, patch: Triple, dtype: torch.dtype) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, patch, stride=patch, dtype=dtype)

    def forward(self, values: Float[Tensor, "b g m patch"]) -> Float[Tensor, "b g m c"]:
        """Project values that are ordered (channel, frame, row, column) within a patch."""
        return F.linear(values.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


class TimestepEmbedder(nn.Module):
    """The embedding of a timestep (0 to 1000): sinusoids, then a small MLP, in fp32."""

    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(
            nn.Linear(frequencies, width, dtype=torch.float32),
            nn.SiLU(),
            nn.Linear(width, width, dtype=torch.float32),
        )

    def forward(self, timesteps: Float[Tensor, "b g"]) -> Float[Tensor, "b g t"]:
        """Embed fp32 timesteps."""
        half = self.frequencies // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
        angles = timesteps[..., None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
        embedded: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedded


class TextEmbedder(nn.Module):
    """The projection from hidden states of the text encoder to the width of the transformer."""

    def __init__(self, text_width: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.y_proj = nn.Sequential(
            nn.Linear(text_width, width, dtype=dtype),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width, dtype=dtype),
        )

    def forward(
        self, text: Float[Tensor, "b l e"], mask: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "b l c"]:
        """Project all tokens, and set those that the mask excludes, if one is given, to zero."""
        projected: Tensor = self.y_proj(text.to(self.dtype))
        return projected if mask is None else projected.masked_fill(~mask[..., None], 0)


class AdaLN(nn.Sequential):
    """The adaptive modulation SiLU, Linear: `vectors` vectors for each sample and group, in fp32."""

    def __init__(self, embedding: int, width: int, vectors: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(embedding, vectors * width, dtype=torch.float32))
        self.vectors = vectors

    def forward(self, time: Float[Tensor, "b g t"]) -> tuple[Float[Tensor, "b g 1 c"], ...]:
        """Return shift, scale (and gate) for each part of a block."""
        for layer in self:
            time = layer(time)
        return time[:, :, None].chunk(self.vectors, dim=-1)


class FinalLayer(nn.Module):
    """The projection from tokens to the values of each patch, in fp32."""

    def __init__(self, embedding: int, width: int, out: int) -> None:
        super().__init__()
        self.adaLN_modulation = AdaLN(embedding, width, 2)
        self.linear = nn.Linear(width, out, dtype=torch.float32)

    def forward(
        self, x: Float[Tensor, "b g m c"], time: Float[Tensor, "b g t"]
    ) -> Float[Tensor, "b g m patch"]:
        """Return values that are ordered (frame, row, column, channel) within a patch."""
        shift, scale = self.adaLN_modulation(time)
        out: Tensor = self.linear(modulate(x, shift, scale))
        return out
