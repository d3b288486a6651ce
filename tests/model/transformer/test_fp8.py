"""Products in fp8 are as near to the exact ones as e4m3 allows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.traffic import LiveTensors
from model.transformer import fp8
from model.transformer.fp8 import LARGEST, fused_product, quantise_rows, reference_product

HALF_STEP = 2.0**-4  # e4m3 has three bits after the first
SMALLEST_STEP = 2.0**-9
BF16_STEP = 2.0**-8

needs_product_on_cpu = pytest.mark.skipif(
    torch.__version__ < "2.12", reason="PyTorch multiplies with a scale for each row on the CPU since 2.12"
)


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


@pytest.mark.parametrize("elements", [1, 5 * 32])
def test_rows_that_are_quantised_in_parts_have_the_bits_of_all_at_once(monkeypatch, elements):
    x = torch.randn(17, 32, dtype=torch.bfloat16)
    whole = quantise_rows(x)
    monkeypatch.setattr(fp8, "ELEMENTS_AT_A_TIME", elements)
    in_parts = quantise_rows(x)
    assert in_parts.values.view(torch.uint8).equal(whole.values.view(torch.uint8))
    assert in_parts.scale.equal(whole.scale)


def test_weights_that_require_gradients_are_quantised():
    weight = torch.randn(4, 16, requires_grad=True)
    assert quantise_rows(weight).values.float().abs().amax(-1).eq(LARGEST).all()


def test_quantising_needs_fp32_for_some_rows_at_a_time():
    x = torch.empty(fp8.ELEMENTS_AT_A_TIME // 16, 64, dtype=torch.bfloat16, device="meta")
    with LiveTensors() as alive:
        quantise_rows(x)
    assert alive.peak_bytes <= x.nbytes + 4 * len(x)  # that of the absolute values, with the scales


def test_products_are_off_by_what_their_factors_are():
    x, weight = torch.randn(32, 96), torch.randn(48, 96)
    found = reference_product(*quantise_rows(x), *quantise_rows(weight))
    exact = x.double() @ weight.double().t()
    off_x, off_weight = bound(x).double(), bound(weight).double()
    most = off_x @ weight.abs().double().t() + (x.abs() + off_x).double() @ off_weight.t()
    assert ((found - exact).abs() <= most + 1e-4).all()
    assert (found - exact).norm() / exact.norm() < HALF_STEP  # errors do not all point one way


@needs_product_on_cpu
@pytest.mark.parametrize("bias", [None, torch.linspace(-8, 8, 48).bfloat16()])
def test_the_kernel_gives_what_the_definition_gives_in_bf16(bias):
    x, weight = quantise_rows(torch.randn(32, 96)), quantise_rows(torch.randn(48, 96))
    found, plain = fused_product(*x, *weight, bias), reference_product(*x, *weight, bias)
    assert found.dtype == torch.bfloat16
    assert ((found.float() - plain).abs() <= BF16_STEP * plain.abs() + 1e-4).all()


@needs_product_on_cpu
def test_the_kernel_adds_the_bias(monkeypatch):
    """No operation follows the product, so none reads and writes its result again."""
    monkeypatch.setattr(fp8, "reference_product", fused_product)
    layer = fp8.Fp8Linear(nn.Linear(32, 48, dtype=torch.bfloat16).requires_grad_(False))
    with Operations() as seen:
        layer(torch.randn(5, 32, dtype=torch.bfloat16))
    product = seen.names.index("aten::_scaled_mm")
    assert [name for name in seen.names[product + 1 :] if "view" not in name] == []


@needs_product_on_cpu
@pytest.mark.parametrize("num_tokens", [1, fp8.LEAST_ROWS - 1, fp8.LEAST_ROWS + 1])
def test_the_kernel_gets_enough_rows_on_cuda(monkeypatch, num_tokens):
    layer = fp8.Fp8Linear(nn.Linear(32, 48, dtype=torch.bfloat16).requires_grad_(False))
    x = torch.randn(1, num_tokens, 32, dtype=torch.bfloat16)
    expected = layer(x)
    given = []

    def product(rows, *others):
        given.append(len(rows))
        return fused_product(rows, *others)

    monkeypatch.setattr(fp8, "fused_product", product)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    found = layer(x)
    assert given == [max(num_tokens, fp8.LEAST_ROWS)]
    assert found.shape == expected.shape
    assert ((found - expected).abs() <= 2 * BF16_STEP * expected.abs() + 1e-2).all()


class Operations(TorchDispatchMode):
    """Collect the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))
