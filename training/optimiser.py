"""Muon for the weights of linear and convolutional layers, Adam for everything else.

Muon (Keller Jordan, 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum of each
matrix, so that rare directions are learned as fast as common ones. It needs fewer steps than Adam,
which matters when training on CPUs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

MUON_MOMENTUM, MUON_STEPS = 0.95, 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ADAM_BETAS = (0.9, 0.98)
WARMUP_STEPS, DECAY_SHARE = 30, 0.4


class Optimiser:
    """Update all parameters in one step. The `rate` of a step scales both learning rates."""

    def __init__(self, trained: nn.Module, hidden: nn.Module, muon_rate: float, adam_rate: float) -> None:
        """Use Muon for linear layers and convolutions in `hidden` (a part of `trained`), else Adam."""
        kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
        self.muon_rate, self.adam_rate = muon_rate, adam_rate
        self.matrices = [part.weight for part in hidden.modules() if isinstance(part, kinds)]
        self.matrices = [matrix for matrix in self.matrices if matrix.requires_grad]
        self.momenta = [torch.zeros_like(matrix) for matrix in self.matrices]
        muon_weights = set(self.matrices)
        others = [
            other for other in trained.parameters() if other.requires_grad and other not in muon_weights
        ]
        self.adam = torch.optim.Adam(others, lr=adam_rate, betas=ADAM_BETAS)

    def step(self, loss: Float[Tensor, ""], rate: float) -> None:
        """Compute the gradients of the loss and update the parameters."""
        loss.backward()
        self.adam.param_groups[0]["lr"] = rate * self.adam_rate
        self.adam.step()
        self.adam.zero_grad()
        self._step_matrices(rate * self.muon_rate)

    @torch.no_grad()
    def _step_matrices(self, rate: float) -> None:
        for parameter, momentum in zip(self.matrices, self.momenta, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            momentum.lerp_(gradient, 1 - MUON_MOMENTUM)
            update = orthogonalise(gradient.lerp(momentum, MUON_MOMENTUM).flatten(1)).view_as(parameter)
            scale = max(1.0, len(parameter) / parameter[0].numel()) ** 0.5
            parameter.sub_(update, alpha=rate * scale)
            parameter.grad = None

    def state_dict(self) -> dict[str, object]:
        """Return the state for `training.stage.TrainingRun`."""
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore a state from `state_dict`."""
        self.adam.load_state_dict(state["adam"])  # type: ignore[arg-type]
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):  # type: ignore[call-overload]
            momentum.copy_(saved)


def orthogonalise(matrix: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """Bring all singular values near to 1 by a quintic Newton–Schulz iteration."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(MUON_STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def learning_rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up, constant, linear decay to 0."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (1 - step / steps) / DECAY_SHARE)
