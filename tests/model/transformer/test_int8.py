"""Weights in int8 are as near to the exact ones as 255 steps of a row allow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.transformer.int8 import Int8Linear, quantise_rows


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_values_are_off_by_half_a_step_of_their_row_at_most(size):
    x = size * torch.randn(64, 128) * torch.logspace(-3, 3, 64)[:, None]
    rows, scale = quantise_rows(x)
    assert rows.dtype == torch.int8
    assert ((rows * scale - x).abs() <= scale / 2 * (1 + 1e-5)).all()
    assert (rows.abs().amax(-1) == 127).all()


def test_values_are_rounded_to_both_sides():
    rows, _ = quantise_rows(torch.tensor([[127.0, 0.6, 0.4, -0.4, -0.6, -127.0]]))
    assert rows.tolist() == [[127, 1, 0, 0, -1, -127]]


def test_a_row_of_zeros_stays_one():
    rows, scale = quantise_rows(torch.zeros(2, 16))
    assert rows.eq(0).all()
    assert scale.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_is_that_of_a_layer_with_the_rounded_weight(dtype):
    linear = nn.Linear(32, 48, dtype=dtype).requires_grad_(False)
    layer, x = Int8Linear(linear), torch.randn(2, 5, 32, dtype=dtype)
    linear.weight.copy_(layer.weight * layer.scale)
    assert torch.equal(layer(x), linear(x))
