"""Large matrices are quantised where that is wanted alone, and are the same after any LoRA."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from model.io.checkpoint import Weights, load_module
from model.parallel.mesh import SINGLE, ContextParallel
from model.spec.errors import DeviceError
from model.spec.memory import Quantize
from model.transformer import fp8
from model.transformer import quantise as quantise_module
from model.transformer.config import QUANTISED, DitConfig, load_dit_config
from model.transformer.dit import Dit
from model.transformer.fp8 import Fp8Linear, reference_product
from model.transformer.int8 import Int8Linear
from model.transformer.lora import LoraMerger, read_lora
from model.transformer.quantise import LAYERS, check_device, choose_layer, quantise, quantise_when_loaded
from model.transformer.quantised_linear import QuantisedLinear
from model.transformer.token_layout import Window, build_layout
from tests.model.plain import checkpoints
from tests.model.plain.checkpoints import ATTENTION_AND_FFN, write_dit, write_lora
from tests.model.random_dit import random_dit

CPU = torch.device("cpu")
ERRORS = {"fp8": 2.0**-4, "int8": 2.0**-6}
"""Bounds of the relative error of a product."""
SMALL = DitConfig(
    hidden_size=64,
    depth=4,
    num_heads=4,
    caption_channels=16,
    adaln_tembed_dim=32,
    frequency_embedding_size=32,
)


def quantised(dit: Dit) -> set[str]:
    return {name for name, module in dit.named_modules() if isinstance(module, QuantisedLinear)}


@pytest.mark.parametrize("quantize", ERRORS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_keeps_shapes_dtype_and_bias_in_half_the_memory(dtype, bias, quantize):
    linear = nn.Linear(32, 48, bias=bias, dtype=dtype).requires_grad_(False)
    layer, x = LAYERS[quantize](linear), torch.randn(2, 3, 5, 32, dtype=dtype)
    out = layer(x)
    assert (out.shape, out.dtype) == ((2, 3, 5, 48), dtype)
    assert (out - linear(x)).float().norm() / linear(x).float().norm() < ERRORS[quantize]
    assert layer.weight.nbytes * dtype.itemsize == linear.weight.nbytes
    assert torch.equal(layer(torch.zeros(1, 32, dtype=dtype)), linear(torch.zeros(1, 32, dtype=dtype)))


@pytest.mark.parametrize("quantize", ERRORS)
def test_the_large_matrices_of_all_blocks_but_the_first_and_last_are_quantised(quantize):
    dit = random_dit(SMALL)
    quantise(dit, quantize)
    assert quantised(dit) == {f"blocks.{i}.{name}" for i in (1, 2) for name in QUANTISED}
    assert not any(parameter.requires_grad for parameter in dit.parameters())


def velocity(dit: Dit) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    window = Window(2, 8, 12)
    text = dit.text_kv(torch.randn(1, 5, 16, generator=draw), torch.ones(1, 5, dtype=torch.long))
    latents = torch.randn(1, 16, *window[:3], generator=draw)
    return dit(latents, torch.full((1, 2), 500.0), build_layout(SMALL, window, SINGLE, sparse=False), text)


@pytest.mark.parametrize("quantize", ERRORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_with_quantised_weights_is_near_the_one_without(dtype, quantize):
    dit = random_dit(SMALL, dtype)
    exact = velocity(dit)
    quantise(dit, quantize)
    apart = (velocity(dit) - exact).norm() / exact.norm()
    assert 1e-4 < apart < 2 * ERRORS[quantize]


def test_a_device_without_such_products_is_refused_before_anything_is_changed(monkeypatch):
    def no_kernel(*_):
        raise RuntimeError("needs compute capability 8.9")

    monkeypatch.setattr(fp8, "reference_product", no_kernel)
    dit = random_dit(SMALL)
    with pytest.raises(DeviceError, match=r"cpu cannot multiply in fp8: needs compute capability"):
        quantise(dit, "fp8")
    assert quantised(dit) == set()


def test_a_device_is_tried_with_every_size_that_is_quantised(monkeypatch):
    tried = set()

    def noted(x, x_scale, weight, weight_scale, bias=None):
        tried.add(tuple(weight.shape))
        return reference_product(x, x_scale, weight, weight_scale, bias)

    monkeypatch.setattr(fp8, "reference_product", noted)
    check_device("fp8", CPU, torch.float32, SMALL)
    block = random_dit(SMALL).blocks[1]
    assert tried == {tuple(block.get_submodule(name).get_parameter("weight").shape) for name in QUANTISED}
    assert len(tried) > 2


class FusedInt8Linear(Int8Linear):
    """Stands in for the layer with a kernel, which needs Triton."""


class Trial:
    """Stands in for the module of the kernel, and records what is tried."""

    FusedInt8Linear = FusedInt8Linear

    def __init__(self, outcome: bool) -> None:
        self.outcome = outcome
        self.tried: list[tuple[list[torch.Size], int, torch.device]] = []

    def is_faster(self, shapes: list[torch.Size], rows: int, device: torch.device) -> bool:
        self.tried.append((shapes, rows, device))
        return self.outcome


CUDA = torch.device("cuda")
ALONE_ON_CUDA = ContextParallel(CUDA)


def chosen(
    monkeypatch,
    trial: Trial | None,
    quantize: Quantize,
    dtype=torch.bfloat16,
    parallel=ALONE_ON_CUDA,
) -> type[QuantisedLinear] | None:
    monkeypatch.setattr(quantise_module, "check_device", lambda *_: None)  # there is no GPU
    monkeypatch.setattr(quantise_module, "find_spec", lambda _: trial)
    monkeypatch.setitem(sys.modules, "model.transformer.int8_triton", trial)
    return choose_layer(quantize, parallel, dtype, SMALL)


@pytest.mark.parametrize(("is_faster", "layer"), [(True, FusedInt8Linear), (False, Int8Linear)])
def test_weights_in_int8_are_multiplied_in_the_kernel_where_that_is_faster(monkeypatch, is_faster, layer):
    trial = Trial(is_faster)
    assert chosen(monkeypatch, trial, "int8") is layer
    ((shapes, rows, device),) = trial.tried
    block = random_dit(SMALL).blocks[1]
    assert shapes == [block.get_submodule(name).get_parameter("weight").shape for name in QUANTISED]
    assert (rows, device) == (37440, CUDA)


def test_all_ranks_of_a_world_multiply_as_the_first_one_does(monkeypatch):
    pair, world = ContextParallel(CUDA, 2, rank=1), ContextParallel(CUDA, 4, rank=3)
    monkeypatch.setattr(quantise_module, "from_leader", lambda group, _: group is world)
    rank = ContextParallel(CUDA, wider=(pair, world))
    assert chosen(monkeypatch, Trial(False), "int8", parallel=rank) is FusedInt8Linear


@pytest.mark.parametrize(
    ("quantize", "dtype", "device", "layer"),
    [
        ("int8", torch.bfloat16, CPU, Int8Linear),
        ("int8", torch.float32, CUDA, Int8Linear),
        ("fp8", torch.bfloat16, CUDA, Fp8Linear),
        ("none", torch.bfloat16, CUDA, None),
    ],
)
def test_the_kernel_is_not_tried_where_it_cannot_be_used(monkeypatch, quantize, dtype, device, layer):
    trial = Trial(True)
    assert chosen(monkeypatch, trial, quantize, dtype, ContextParallel(device)) is layer
    assert chosen(monkeypatch, None, "int8") is Int8Linear
    assert not trial.tried


@pytest.mark.parametrize("quantize", ERRORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_quantised_as_they_are_loaded_are_the_same(tmp_path, dtype, quantize):
    document = {**checkpoints.SMALL, "depth": 4}
    write_dit(tmp_path / "dit", document)
    weights = Weights(tmp_path / "dit", "diffusion_pytorch_model")
    config = load_dit_config(tmp_path / "dit" / "config.json")
    afterwards = load_module(lambda: Dit(config, dtype), weights, CPU)
    quantise(afterwards, quantize)
    convert = quantise_when_loaded(LAYERS[quantize], config.depth)
    at_once = load_module(lambda: Dit(config, dtype), weights, CPU, convert)
    assert same(at_once, afterwards)
    assert quantised(at_once) == quantised(afterwards) != set()


@pytest.mark.parametrize("quantize", ERRORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loras_are_merged_before_weights_are_quantised_and_leave_nothing_behind(tmp_path, dtype, quantize):
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
        quantise(dit, quantize)
    loras = merged(other)
    loras.switch("lora")
    assert same(other, first)
    assert not same(other, base)
    loras.switch(None)
    assert same(other, base)


def same(one: Dit, other: Dit) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name].float(), theirs[name].float()) for name in ours | theirs)
