"""The transformer: latents, timesteps and text in, velocity out.

`model.sample` calls it. Whatever is the same at every step is computed once and passed in: the text's
keys and values (`Dit.read`), those of clean condition frames (`Dit.remember`), and the order and
positions of the tokens (`model.tokens.Layout`). Module names are those of the checkpoint. It does not
know of sigmas, guidance, or that several devices may share the tokens.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.transformer.attention import KeysValues, TextKeysValues
from model.transformer.block import Block
from model.transformer.config import DitConfig
from model.transformer.layers import FinalLayer, PatchEmbedder, TextEmbedder, TimestepEmbedder
from model.transformer.step_cache import StepCache
from model.transformer.token_layout import Layout

Cache = tuple[KeysValues, ...]  # one for each block
ReadText = tuple[TextKeysValues, ...]


class Dit(nn.Module):
    """LongCat-Video's transformer in one dtype; parts that are computed in fp32 have fp32 parameters."""

    def __init__(self, config: DitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        width, patch = config.hidden_size, config.patch_size
        self.x_embedder = PatchEmbedder(config.in_channels, width, patch, dtype)
        self.t_embedder = TimestepEmbedder(config.frequency_embedding_size, config.adaln_tembed_dim)
        self.y_embedder = TextEmbedder(config.caption_channels, width, dtype)
        blocks = nn.ModuleList(Block(config, dtype) for _ in range(config.depth))
        self.blocks = cast(Sequence[Block], blocks)
        values = patch[0] * patch[1] * patch[2] * config.out_channels
        self.final_layer = FinalLayer(config.adaln_tembed_dim, width, values)

    def read(self, text: Float[Tensor, "b l text"], mask: Int[Tensor, "b l"]) -> ReadText:
        """Project the text encoder's hidden states for every block, once for a job.

        Where `text_tokens_zero_pad`, padding is attended to as zeros; otherwise it is left out.
        """
        present = mask.bool()
        zero_pad = self.config.text_tokens_zero_pad
        tokens = self.y_embedder(text, present if zero_pad else None)
        keys = None if zero_pad else present[:, None, None]
        return tuple(block.cross_attn.read(tokens, keys) for block in self.blocks)

    def remember(self, clean: Float[Tensor, "b z f h w"], layout: Layout) -> Cache:
        """Keys and values of clean frames in every block, with timestep 0 and without text."""
        timesteps = clean.new_zeros(clean.shape[0], clean.shape[2], dtype=torch.float32)
        x, time = self._embed(clean, timesteps, layout)
        cache = []
        for block in self.blocks:
            x, seen = block(x, time, layout, None, None)
            cache.append(seen)
        return tuple(cache)

    def forward(
        self,
        latents: Float[Tensor, "b z f h w"],
        timesteps: Float[Tensor, "b f"],
        layout: Layout,
        text: ReadText,
        past: Cache | None = None,
        steps: StepCache | None = None,
    ) -> Float[Tensor, "b z f h w"]:
        """Predicted velocity in fp32, of the frames given (not of those remembered in `past`).

        With `steps`, what the blocks after the first add may be that of an earlier step.
        """
        embedded, time = self._embed(latents, timesteps, layout)

        def through(x: Tensor, start: int, stop: int) -> Tensor:
            for index in range(start, stop):
                x, _ = self.blocks[index](x, time, layout, text[index], past[index] if past else None)
            return x

        x, depth = through(embedded, 0, 1), len(self.blocks)
        if steps is None:
            x = through(x, 1, depth)
        else:
            x = steps.others(layout.of_noise(x - embedded), x, lambda x: through(x, 1, depth))
        return layout.latents(self.final_layer(x, time))

    def _embed(
        self, latents: Float[Tensor, "b z f h w"], timesteps: Float[Tensor, "b f"], layout: Layout
    ) -> tuple[Float[Tensor, "b g m c"], Float[Tensor, "b g t"]]:
        x = self.x_embedder(layout.patches(latents.to(self.dtype)))
        return x, self.t_embedder(layout.of_groups(timesteps).to(self.dtype).float())
