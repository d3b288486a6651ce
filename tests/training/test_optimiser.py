"""Muon and Adam: which weights each of them updates, and that both learn."""

import pytest
import torch
from torch import nn

from training.optimiser import Optimiser, learning_rate, orthogonalise


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def loss_of(model):
    x = torch.linspace(-1, 1, 40).view(10, 4)
    return (model(x) - x[:, :2].square()).square().mean()


def test_orthogonalised_matrix_has_singular_values_near_one():
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    for shaped in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalise(shaped))
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.5


def test_only_hidden_matrices_use_muon():
    model = two_layers()
    optimiser = Optimiser(model, model[0], 0.02, 0.01)
    assert [matrix is model[0].weight for matrix in optimiser.matrices] == [True]
    adam = {id(parameter) for parameter in optimiser.adam.param_groups[0]["params"]}
    assert adam == {id(model[0].bias), id(model[2].weight), id(model[2].bias)}


def test_frozen_weights_are_not_optimised():
    model = two_layers()
    model[0].requires_grad_(False)
    optimiser = Optimiser(model, model, 0.02, 0.01)
    assert [matrix is model[2].weight for matrix in optimiser.matrices] == [True]


def test_steps_reduce_loss():
    model = two_layers()
    optimiser = Optimiser(model, model[0], 0.02, 0.01)
    before = loss_of(model).item()
    for _ in range(60):
        optimiser.step(loss_of(model), 1.0)
    assert loss_of(model).item() < 0.3 * before


def test_zero_rate_changes_nothing():
    model = two_layers()
    before = [parameter.clone() for parameter in model.parameters()]
    Optimiser(model, model[0], 0.02, 0.01).step(loss_of(model), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_optimiser_resumes_from_state():
    weights = []
    for interrupt in (False, True):
        model = two_layers()
        optimiser = Optimiser(model, model[0], 0.02, 0.01)
        for step in range(6):
            if interrupt and step == 3:
                state, optimiser = optimiser.state_dict(), Optimiser(model, model[0], 0.02, 0.01)
                optimiser.load_state_dict(state)
            optimiser.step(loss_of(model), 1.0)
        weights.append(model[0].weight.detach().clone())
    assert torch.equal(*weights)


def test_learning_rate_warms_up_stays_constant_and_decays():
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] < 0.1
    assert set(rates[100:500]) == {1.0}
    assert rates[600:] == sorted(rates[600:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=0.01)
