"""Define the transformer: latents, timesteps and text in, velocity out.

Whatever is the same at every step is computed once and passed in: the keys and values of the text
(`Dit.text_kv`), those of clean condition frames (`Dit.condition_kv`), and the order and positions of the
tokens (`Layout`). Attribute names are those of the checkpoint.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import repeat
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.transformer.attention import KV, TextKV
from model.transformer.block import Block
from model.transformer.block_weights import BlockWeights, ResidentBlocks
from model.transformer.config import DitConfig
from model.transformer.layers import FinalLayer, PatchEmbedder, TextEmbedder, TimestepEmbedder
from model.transformer.step_cache import StepCache
from model.transformer.token_layout import Layout

ConditionKVs = tuple[KV, ...]  # one for each block
TextKVs = tuple[TextKV, ...]


class Dit(nn.Module):
    """LongCat-Video's transformer. Parameters have one dtype, except where the release computes in fp32."""

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
        self.block_weights: BlockWeights = ResidentBlocks(self.blocks)
        values = patch[0] * patch[1] * patch[2] * config.out_channels
        self.final_layer = FinalLayer(config.adaln_tembed_dim, width, values)

    def text_kv(self, hidden: Float[Tensor, "b l e"], mask: Int[Tensor, "b l"]) -> TextKVs:
        """Project the text encoder's hidden states to keys and values for every block.

        With `text_tokens_zero_pad` padding is attended to as zeros, otherwise it is excluded.
        """
        present = mask.bool()
        zero_pad = self.config.text_tokens_zero_pad
        tokens = self.y_embedder(hidden, present if zero_pad else None)
        attention_mask = None if zero_pad else present[:, None, None]
        with self.block_weights.in_order() as blocks:
            return tuple(block.cross_attn.project_kv(tokens, attention_mask) for block in blocks)

    def condition_kv(self, clean: Float[Tensor, "b z f h w"], layout: Layout) -> ConditionKVs:
        """Return keys and values of clean frames in every block, with timestep 0 and without text."""
        timesteps = clean.new_zeros(clean.shape[0], clean.shape[2], dtype=torch.float32)
        x, time = self._embed(clean, timesteps, layout)
        kvs: list[KV] = []
        with self.block_weights.in_order() as blocks:
            for block in blocks:
                x = block(x, time, layout, None, kv_out=kvs)
        return tuple(kvs)

    def forward(
        self,
        latents: Float[Tensor, "b z f h w"],
        timesteps: Float[Tensor, "b f"],
        layout: Layout,
        text_kv: TextKVs,
        condition_kv: ConditionKVs | None = None,
        step_cache: StepCache | None = None,
    ) -> Float[Tensor, "b z f h w"]:
        """Predict the velocity in fp32, of the frames in `latents` (not of those in `condition_kv`).

        With a `step_cache`, the update of all blocks but the first may be reused from an earlier step.
        """
        x, time = self._embed(latents, timesteps, layout)

        def run_block(x: Tensor, inputs: tuple[Block, TextKV, KV | None]) -> Tensor:
            block, *kv = inputs
            out: Tensor = block(x, time, layout, *kv)
            return out

        with self.block_weights.in_order() as blocks:
            remaining = zip(blocks, text_kv, condition_kv or repeat(None), strict=False)
            if step_cache is None:
                for inputs in remaining:
                    x = run_block(x, inputs)
            else:
                embedded, x = x, run_block(x, next(remaining))
                first_update = layout.noise_tokens(x - embedded)
                del embedded
                x = step_cache.run_or_reuse(first_update, x, lambda x: reduce(run_block, remaining, x))
        return layout.unpatchify(self.final_layer(x, time))

    def _embed(
        self, latents: Float[Tensor, "b z f h w"], timesteps: Float[Tensor, "b f"], layout: Layout
    ) -> tuple[Float[Tensor, "b g m c"], Float[Tensor, "b g t"]]:
        x = self.x_embedder(layout.patchify(latents.to(self.dtype)))
        return x, self.t_embedder(layout.group_timesteps(timesteps).to(self.dtype).float())
