"""Calls of the transformer against `plain`, in shapes that the parity data does not have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.io.checkpoint import Weights, load_module
from model.parallel.mesh import SINGLE
from model.transformer.config import Triple, load_dit_config
from model.transformer.dit import Dit
from model.transformer.lora import LoraMerger, read_lora
from model.transformer.token_layout import Window, build_layout
from tests.model.plain.checkpoints import ATTENTION_AND_FFN, EVERYTHING, SMALL, write_dit, write_lora
from tests.model.plain.transformer import PlainTransformer, load_transformer

CPU = torch.device("cpu")
STEM = "diffusion_pytorch_model"


def bricks(chunk_q: Triple, chunk_k: Triple, **kept: float | None) -> dict[str, Any]:
    return {"bsa_params": {"chunk_3d_shape_q": chunk_q, "chunk_3d_shape_k": chunk_k, **kept}}


@dataclass(frozen=True)
class Call:
    """A shape of the transformer and a call of it; `clean` frames come first, remembered or not."""

    config: dict[str, Any]
    frames: int = 3
    clean: int = 0
    sides: tuple[int, int] = (8, 4)
    batch: int = 2
    remembered: bool = False
    sparse: bool = False
    dtype: torch.dtype = torch.float32

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents of all frames (the clean ones the same in each sample), timesteps, text, mask."""
        draw = torch.Generator().manual_seed(3)
        latents = torch.randn(self.batch, 16, self.frames, *self.sides, generator=draw)
        latents[:, :, : self.clean] = latents[:1, :, : self.clean]
        timesteps = torch.tensor([[875.3], [312.7]])[: self.batch].repeat(1, self.frames)
        timesteps[:, : self.clean] = 0
        text = torch.randn(self.batch, 7, self.config["caption_channels"], generator=draw)
        mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])[-self.batch :]
        return latents, timesteps, text, mask


def ours(call: Call, dit: Dit) -> Tensor:
    latents, timesteps, text, mask = call.inputs()
    read = dit.text_kv(text, mask)
    if not call.remembered:
        window = Window(call.frames, *call.sides, num_condition=call.clean)
        return dit(latents, timesteps, build_layout(dit.config, window, SINGLE, sparse=call.sparse), read)
    before = Window(call.clean, *call.sides)
    past = dit.condition_kv(
        latents[:1, :, : call.clean], build_layout(dit.config, before, SINGLE, sparse=False)
    )
    window = Window(call.frames - call.clean, *call.sides, first=call.clean)
    layout = build_layout(dit.config, window, SINGLE, sparse=False)
    return dit(latents[:, :, call.clean :], timesteps[:, call.clean :], layout, read, past)


def plainly(call: Call, plain: PlainTransformer) -> Tensor:
    latents, timesteps, text, mask = call.inputs()
    if not call.remembered:
        sparse = plain.bricks if call.sparse else None
        return plain(latents, timesteps, text, mask, condition=call.clean, bricks=sparse)
    cache = plain.remember(latents[0, :, : call.clean])
    return plain(latents[:, :, call.clean :], timesteps[:, call.clean :], text, mask, cache=cache)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Dit, Weights]:
    config, weights = load_dit_config(folder / "dit" / "config.json"), Weights(folder / "dit", STEM)
    return load_module(lambda: Dit(config, dtype), weights, CPU), weights


BRICKED = Call(SMALL, frames=8, sides=(16, 16), batch=1, sparse=True)
CALLS = {
    "three blocks": Call(SMALL | {"depth": 3}),
    "one head": Call(SMALL | {"num_heads": 1}),
    "heads of 12": Call(SMALL | {"hidden_size": 48, "num_heads": 4}),
    "heads of 20": Call(SMALL | {"hidden_size": 40, "num_heads": 2}),
    "a wide feed-forward": Call(SMALL | {"hidden_size": 64, "mlp_ratio": 8}),
    "other embeddings": Call(SMALL | {"adaln_tembed_dim": 24, "frequency_embedding_size": 64}),
    "patches of 1 by 4": Call(SMALL | {"patch_size": [1, 1, 4]}),
    "padding left out of the text": Call(SMALL | {"text_tokens_zero_pad": False}),
    "a frame": Call(SMALL, frames=1),
    "a clean frame": Call(SMALL, clean=1),
    "three clean frames": Call(SMALL, frames=5, clean=3),
    "a clean frame, remembered": Call(SMALL, clean=1, remembered=True),
    "three clean frames, remembered": Call(SMALL, frames=5, clean=3, remembered=True),
    "remembered, padding left out": Call(SMALL | {"text_tokens_zero_pad": False}, clean=2, remembered=True),
    "bricks": BRICKED,
    "bricks of two samples": replace(BRICKED, batch=2, frames=4),
    "bricks and clean frames": replace(BRICKED, clean=4),
    "two bricks of clean frames": replace(BRICKED, frames=12, clean=8),
    "bricks, but one frame": Call(SMALL, frames=1, sparse=True),
    "larger key bricks": replace(BRICKED, config=SMALL | bricks((2, 4, 4), (4, 4, 8), sparsity=0.7), clean=4),
    "larger query bricks": replace(BRICKED, config=SMALL | bricks((4, 8, 4), (2, 2, 4), sparsity=0.8)),
    "a threshold alone": replace(
        BRICKED, config=SMALL | bricks((4, 4, 4), (4, 4, 4), sparsity=None, cdf_threshold=0.6), clean=4
    ),
    "a threshold and unequal bricks": replace(
        BRICKED, config=SMALL | bricks((2, 2, 4), (4, 4, 2), sparsity=0.9, cdf_threshold=0.3)
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_transformer_computes_what_plain_computes(tmp_path: Path, name: str) -> None:
    call = CALLS[name]
    write_dit(tmp_path / "dit", call.config, seed=len(name))
    torch.testing.assert_close(
        ours(call, load(tmp_path)[0]).double(), plainly(call, load_transformer(tmp_path)), atol=1e-4, rtol=0
    )


def test_frames_of_one_call_may_have_their_own_timesteps(tmp_path: Path) -> None:
    call = Call(SMALL)
    write_dit(tmp_path / "dit", SMALL)
    latents, _, text, mask = call.inputs()
    timesteps = torch.tensor([[0.0, 12.5, 999.0], [430.1, 430.1, 3.0]])
    dit = load(tmp_path)[0]
    layout = build_layout(dit.config, Window(call.frames, *call.sides), SINGLE, sparse=False)
    expected = load_transformer(tmp_path)(latents, timesteps, text, mask)
    torch.testing.assert_close(
        dit(latents, timesteps, layout, dit.text_kv(text, mask)).double(), expected, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("rank", [1, 6])
@pytest.mark.parametrize(
    "modules", [ATTENTION_AND_FFN, EVERYTHING, ("blocks.1.attn.qkv", "final_layer.linear")]
)
def test_merged_lora_predicts_what_the_unmerged_one_does(
    tmp_path: Path, modules: tuple[str, ...], rank: int
) -> None:
    call = Call(SMALL, clean=1)
    write_dit(tmp_path / "dit", SMALL)
    write_lora(tmp_path / "lora.safetensors", SMALL, modules, rank=rank, scale=0.3)
    dit, weights = load(tmp_path)
    before = ours(call, dit)
    LoraMerger(dit, weights, {"it": read_lora(tmp_path / "lora.safetensors", dit)}).switch("it")
    plain = load_transformer(tmp_path).with_lora(tmp_path / "lora.safetensors")
    after = ours(call, dit)
    torch.testing.assert_close(after.double(), plainly(call, plain), atol=1e-4, rtol=0)
    assert (after - before).abs().max() > 0.01


@pytest.mark.parametrize(
    "name", ["three blocks", "three clean frames, remembered", "bricks and clean frames"]
)
def test_bfloat16_stays_near_the_loops_and_rounds_its_timesteps(tmp_path: Path, name: str) -> None:
    call = CALLS[name]
    write_dit(tmp_path / "dit", call.config, dtype=torch.bfloat16)
    plain = replace(load_transformer(tmp_path), rounds_time_to=torch.bfloat16)
    rounded, exact = plainly(call, plain), plainly(call, replace(plain, rounds_time_to=torch.float32))
    found = ours(call, load(tmp_path, torch.bfloat16)[0])
    assert found.dtype == torch.float32
    error = (found - rounded).norm() / rounded.norm()
    assert error < 0.02
    assert error < (found - exact).norm() / exact.norm()
