"""Products in fp8: as near as e4m3 allows, where they are wanted alone, and the same after any LoRA."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.io.checkpoint import Weights, load_module
from model.io.lora import LoraMerger, read_lora
from model.parallel.mesh import SINGLE
from model.spec.errors import DeviceError
from model.transformer import fp8
from model.transformer.config import QUANTISED, DitConfig, load_dit_config
from model.transformer.dit import Dit
from model.transformer.fp8 import (
    LARGEST,
    Fp8Linear,
    fused_product,
    quantise_rows,
    quantise_when_loaded,
    reference_product,
    to_fp8,
)
from model.transformer.token_layout import Window, build_layout
from tests.model.plain import checkpoints
from tests.model.plain.checkpoints import ATTENTION_AND_FFN, write_dit, write_lora
from tests.model.random_dit import random_dit

CPU = torch.device("cpu")
HALF_STEP = 2.0**-4  # e4m3 has three bits after the first
SMALLEST_STEP = 2.0**-9
BF16_STEP = 2.0**-8
SMALL = DitConfig(
    hidden_size=64,
    depth=4,
    num_heads=4,
    caption_channels=16,
    adaln_tembed_dim=32,
    frequency_embedding_size=32,
)


def in_fp8(dit: Dit) -> set[str]:
    return {name for name, module in dit.named_modules() if isinstance(module, Fp8Linear)}


def bound(x: torch.Tensor) -> torch.Tensor:
    """How far a value may be from what stands for it: half a step, of its size or of the smallest ones."""
    scale = x.abs().amax(-1, keepdim=True) / LARGEST
    return torch.maximum(x.abs() * HALF_STEP, scale * SMALLEST_STEP / 2) * (1 + 1e-5)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_values_are_off_by_half_a_step_of_e4m3_at_most(size):
    x = size * torch.randn(64, 128) * torch.logspace(-3, 3, 64)[:, None]
    rows, scale = quantise_rows(x)
    assert rows.dtype == torch.float8_e4m3fn
    assert ((rows.float() * scale - x).abs() <= bound(x)).all()
    assert (rows.float().abs().amax(-1) == LARGEST).all()


def test_a_row_of_zeros_stays_one():
    rows, scale = quantise_rows(torch.zeros(2, 16))
    assert rows.float().eq(0).all()
    assert scale.isfinite().all()


def test_products_are_off_by_what_their_factors_are():
    x, weight = torch.randn(32, 96), torch.randn(48, 96)
    found = reference_product(*quantise_rows(x), *quantise_rows(weight))
    exact = x.double() @ weight.double().t()
    off_x, off_weight = bound(x).double(), bound(weight).double()
    most = off_x @ weight.abs().double().t() + (x.abs() + off_x).double() @ off_weight.t()
    assert ((found - exact).abs() <= most + 1e-4).all()
    assert (found - exact).norm() / exact.norm() < HALF_STEP  # errors do not all point one way


def test_the_kernel_gives_what_the_definition_gives_in_bf16():
    x, weight = quantise_rows(torch.randn(32, 96)), quantise_rows(torch.randn(48, 96))
    found, plain = fused_product(*x, *weight), reference_product(*x, *weight)
    assert found.dtype == torch.bfloat16
    assert ((found.float() - plain).abs() <= BF16_STEP * plain.abs() + 1e-4).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_keeps_shapes_dtype_and_bias_in_half_the_memory(dtype, bias):
    linear = nn.Linear(32, 48, bias=bias, dtype=dtype).requires_grad_(False)
    layer, x = Fp8Linear(linear), torch.randn(2, 3, 5, 32, dtype=dtype)
    out = layer(x)
    assert (out.shape, out.dtype) == ((2, 3, 5, 48), dtype)
    assert (out - linear(x)).float().norm() / linear(x).float().norm() < HALF_STEP
    assert layer.weight.nbytes * dtype.itemsize == linear.weight.nbytes
    assert torch.equal(layer(torch.zeros(1, 32, dtype=dtype)), linear(torch.zeros(1, 32, dtype=dtype)))


def test_the_large_matrices_of_all_blocks_but_the_first_and_last_are_quantised():
    dit = random_dit(SMALL)
    to_fp8(dit)
    assert in_fp8(dit) == {f"blocks.{i}.{name}" for i in (1, 2) for name in QUANTISED}
    assert not any(parameter.requires_grad for parameter in dit.parameters())


def velocity(dit: Dit) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    window = Window(2, 8, 12)
    text = dit.text_kv(torch.randn(1, 5, 16, generator=draw), torch.ones(1, 5, dtype=torch.long))
    latents = torch.randn(1, 16, *window[:3], generator=draw)
    return dit(latents, torch.full((1, 2), 500.0), build_layout(SMALL, window, False, SINGLE), text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_in_fp8_is_near_the_one_without(dtype):
    dit = random_dit(SMALL, dtype)
    exact = velocity(dit)
    to_fp8(dit)
    apart = (velocity(dit) - exact).norm() / exact.norm()
    assert 1e-4 < apart < 2 * HALF_STEP


def test_a_device_without_such_products_is_refused_before_anything_is_changed(monkeypatch):
    def no_kernel(*_):
        raise RuntimeError("needs compute capability 8.9")

    monkeypatch.setattr(fp8, "reference_product", no_kernel)
    dit = random_dit(SMALL)
    with pytest.raises(DeviceError, match=r"cpu cannot multiply in fp8: needs compute capability"):
        to_fp8(dit)
    assert in_fp8(dit) == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_quantised_as_they_are_loaded_are_the_same(tmp_path, dtype):
    document = {**checkpoints.SMALL, "depth": 4}
    write_dit(tmp_path / "dit", document)
    weights = Weights(tmp_path / "dit", "diffusion_pytorch_model")
    config = load_dit_config(tmp_path / "dit" / "config.json")
    afterwards = load_module(lambda: Dit(config, dtype), weights, CPU)
    to_fp8(afterwards)
    at_once = load_module(lambda: Dit(config, dtype), weights, CPU, quantise_when_loaded(config.depth))
    assert same(at_once, afterwards)
    assert in_fp8(at_once) == in_fp8(afterwards) != set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loras_are_merged_before_weights_are_quantised_and_leave_nothing_behind(tmp_path, dtype):
    document = {**checkpoints.SMALL, "depth": 3}
    write_dit(tmp_path / "dit", document)
    path = tmp_path / "lora.safetensors"
    write_lora(path, document, ATTENTION_AND_FFN, rank=3, scale=0.7, seed=1)
    weights = Weights(tmp_path / "dit", "diffusion_pytorch_model")
    config = load_dit_config(tmp_path / "dit" / "config.json")
    first, other, base = (load_module(lambda: Dit(config, dtype), weights, CPU) for _ in range(3))

    def merged(dit: Dit) -> LoraMerger:
        return LoraMerger(dit, weights, {"lora": read_lora(path, dit)})

    merged(first).switch("lora")
    for dit in (first, other, base):
        to_fp8(dit)
    loras = merged(other)
    loras.switch("lora")
    assert same(other, first)
    assert not same(other, base)
    loras.switch(None)
    assert same(other, base)


def same(one: Dit, other: Dit) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name].float(), theirs[name].float()) for name in ours | theirs)
