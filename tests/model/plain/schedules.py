"""Timesteps and sigmas of every schedule, one number after the other."""

from __future__ import annotations

import torch


def shifted(sigmas, shift):
    sigmas = torch.as_tensor(sigmas, dtype=torch.float32)
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def standard(steps, shift):
    """(timesteps, sigmas with the final 0)."""
    return finished(shifted(torch.linspace(1, 0.001, steps, dtype=torch.float32), shift))


def distilled(steps, shift):
    descending = [(50 - i) / 50 for i in range(50)]
    return finished(shifted([descending[i * 50 // steps] for i in range(steps)], shift))


def with_enhance_hf(steps, shift):
    """The upper half as it is, the lower half in even steps of 50."""
    timesteps = [t for t in standard(steps, shift)[0].tolist() if t > 500]
    timesteps += [500.0 - 50 * i for i in range(10)]
    return finished(torch.tensor(timesteps) / 1000)


def refinement(steps, shift, t_thresh):
    timesteps = [1000 * t_thresh]
    timesteps += [t for t in standard(steps, shift)[0].tolist() if t < 1000 * t_thresh]
    return finished(torch.tensor(timesteps) / 1000)


def finished(sigmas):
    return sigmas * 1000, torch.cat([sigmas, torch.zeros(1)])
