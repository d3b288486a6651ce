"""The transformer against what the published one computed, on one device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.parallel.mesh import SINGLE
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.rope import rotate
from model.transformer.token_layout import Window, build_layout
from tests.model.parity_cases import PARITY, dit_for, load_dit, velocity

CASES = sorted(path.stem for path in (PARITY / "dit_cases").glob("*.safetensors"))
TOLERANCE = 2e-5


@pytest.mark.parametrize("case", CASES)
def test_a_call_gives_the_published_velocity(case):
    ours, published = velocity(case, SINGLE)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, published, rtol=0, atol=TOLERANCE)


def test_condition_kv_equals_the_published_keys_and_values(parity_checkpoint):
    dit = load_dit(parity_checkpoint)
    given = load_file(PARITY / "dit_cases" / "continuation_kv_cache.safetensors")
    clean = given["in.condition_latents"]
    layout = build_layout(dit.config, Window(*clean.shape[2:]), SINGLE, sparse=False)
    for i, ours in enumerate(dit.condition_kv(clean, layout)):
        k, v = (given[f"out.kv.{i}.{name}"] for name in "kv")
        in_groups = k.transpose(1, 2).unflatten(1, (layout.num_groups, -1))
        turned = (
            rotate(in_groups, layout.rotation).flatten(1, 2).transpose(1, 2)
        )  # published keys are not turned yet
        torch.testing.assert_close(ours.k, turned, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(ours.v, v, rtol=0, atol=TOLERANCE)


def test_the_full_size_transformer_has_the_released_parameters():
    with torch.device("meta"):
        dit = Dit(DitConfig(), torch.bfloat16)
    ours = {name: list(tensor.shape) for name, tensor in dit.state_dict().items()}
    assert ours == json.loads((PARITY / "dit_full_size_keys.json").read_text())


def test_what_is_computed_in_fp32_has_fp32_parameters_in_bf16():
    with torch.device("meta"):
        dit = Dit(DitConfig(depth=1), torch.bfloat16)
    in_fp32 = {name.split(".")[0] for name, x in dit.named_parameters() if x.dtype == torch.float32}
    assert in_fp32 == {"t_embedder", "final_layer", "blocks"}
    inside_blocks = {
        name for name, x in dit.named_parameters() if x.dtype == torch.float32 and name.startswith("blocks")
    }
    assert all("adaLN_modulation" in name for name in inside_blocks)


@pytest.mark.parametrize(
    "case", ["t2v", "continuation_two_condition_latents", "continuation_kv_cache", "block_sparse"]
)
def test_bf16_stays_close_to_fp32(case, parity_checkpoint):
    """One call at timesteps that bf16 can say: correlation above 0.9999, mean difference under 1 %."""
    fp32, _ = velocity(case, SINGLE, timestep_dtype=torch.bfloat16)
    bf16, _ = velocity(case, SINGLE, bf16_dit(parity_checkpoint))
    assert bf16.dtype == torch.float32
    assert torch.corrcoef(torch.stack([bf16.flatten(), fp32.flatten()]))[0, 1] > 0.9999
    assert (bf16 - fp32).abs().mean() < 0.01 * fp32.abs().mean()


def test_bf16_rounds_the_timestep_first(parity_checkpoint):
    """960 and 961 are one number in bf16, so they give one velocity."""
    dit = bf16_dit(parity_checkpoint)
    layout = build_layout(dit.config, Window(1, 8, 8), SINGLE, sparse=False)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 1, 8, 8, generator=generator)
    text = dit.text_kv(
        torch.randn(1, 8, dit.config.caption_channels, generator=generator), torch.ones(1, 8).long()
    )
    near, far, other = (dit(latents, torch.full((1, 1), t), layout, text) for t in (960.0, 961.0, 990.0))
    assert torch.equal(near, far)
    assert not torch.equal(near, other)


def test_condition_frames_do_not_depend_on_the_text(parity_checkpoint):
    """All but the condition frames change with the text."""
    dit = dit_for("i2v")
    given = load_file(PARITY / "dit_cases" / "i2v.safetensors")
    latents = given["in.hidden_states"]
    layout = build_layout(
        dit.config, Window(4, latents.shape[3], latents.shape[4], num_condition=1), SINGLE, sparse=False
    )
    mask = given["in.encoder_attention_mask"]
    states = given["in.encoder_hidden_states"][:, 0]
    ours, others = (
        dit(latents, given["in.timestep"], layout, dit.text_kv(x, mask)) for x in (states, -states)
    )
    assert torch.equal(ours[:, :, :1], others[:, :, :1])
    assert not torch.allclose(ours[:, :, 1:], others[:, :, 1:], atol=1e-3)


def test_text_in_padding_changes_nothing(parity_checkpoint):
    for case in ("t2v", "t2v_no_zero_pad"):
        dit = dit_for(case)
        given = load_file(PARITY / "dit_cases" / f"{case}.safetensors")
        mask = given["in.encoder_attention_mask"]
        states = given["in.encoder_hidden_states"][:, 0]
        louder = torch.where(mask[..., None].bool(), states, states + 100)
        for ours, others in zip(dit.text_kv(states, mask), dit.text_kv(louder, mask), strict=True):
            attended = slice(None) if case == "t2v" else mask[0].bool()
            assert torch.equal(ours.k[:1, :, attended], others.k[:1, :, attended])


def bf16_dit(checkpoint: Path) -> Dit:
    from model.io.checkpoint import Weights, load_module
    from model.transformer.config import load_dit_config

    config = load_dit_config(checkpoint / "dit" / "config.json")
    weights = Weights(checkpoint / "dit", "diffusion_pytorch_model")
    return load_module(lambda: Dit(config, torch.bfloat16), weights, torch.device("cpu"))
