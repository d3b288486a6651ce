"""Compute schedules: the noise levels (sigmas) and timesteps (1000 · sigma) of each step, in fp32."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.io.json_file import load_json
from model.spec.errors import CheckpointError
from model.spec.resolve import DISTILLED_SCHEDULE_STEPS
from model.spec.steps import ENHANCED_FROM, ENHANCED_STRIDE, LAST_SIGMA

TRAIN_TIMESTEPS = 1000.0
LARGEST_SHIFT = 1000  # all levels are 1, to three digits


class Schedule(NamedTuple):
    """A timestep for each step, and the sigmas between the steps: one more, the last 0."""

    timesteps: Float[Tensor, " steps"]
    sigmas: Float[Tensor, " levels"]


def load_shift(path: Path) -> float:
    """Read the shift of the noise levels from `scheduler/scheduler_config.json`. Raises CheckpointError."""
    shift = load_json(path).get("shift")
    if isinstance(shift, bool) or not isinstance(shift, int | float):
        raise CheckpointError(path, "has no number called shift")
    if not 0 < shift <= LARGEST_SHIFT:
        raise CheckpointError(path, f"shift is {shift}, not between 0 and {LARGEST_SHIFT}")
    return float(shift)


def standard(steps: int, shift: float) -> Schedule:
    """Return levels that are evenly spaced from 1 to 0.001, then shifted."""
    return _schedule(_shifted(torch.linspace(1, LAST_SIGMA, steps), shift))


def distilled(steps: int, shift: float) -> Schedule:
    """Return `steps` of the levels (50, 49, …, 1)/50, evenly chosen, then shifted."""
    chosen = torch.from_numpy(np.floor(np.linspace(0, DISTILLED_SCHEDULE_STEPS, steps, endpoint=False)))
    return _schedule(_shifted((DISTILLED_SCHEDULE_STEPS - chosen.float()) / DISTILLED_SCHEDULE_STEPS, shift))


def enhance_hf(schedule: Schedule) -> Schedule:
    """Use more steps at low noise, for fine detail: timesteps above 500 as given, then 500, 450, …, 50."""
    high = schedule.timesteps[schedule.timesteps > ENHANCED_FROM]
    low = torch.arange(ENHANCED_FROM, 0, -ENHANCED_STRIDE, dtype=torch.float32)
    return _of_timesteps(torch.cat([high, low]))


def begin_at(t_thresh: float, schedule: Schedule) -> Schedule:
    """Start at the noise level `t_thresh`: its timestep, then those of the schedule below it."""
    first = torch.tensor([t_thresh * TRAIN_TIMESTEPS], dtype=torch.float32)
    return _of_timesteps(torch.cat([first, schedule.timesteps[schedule.timesteps < first]]))


def _shifted(sigmas: Float[Tensor, " steps"], shift: float) -> Float[Tensor, " steps"]:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _schedule(sigmas: Float[Tensor, " steps"]) -> Schedule:
    return Schedule(sigmas * TRAIN_TIMESTEPS, torch.cat([sigmas, sigmas.new_zeros(1)]))


def _of_timesteps(timesteps: Float[Tensor, " steps"]) -> Schedule:
    return Schedule(timesteps, torch.cat([timesteps / TRAIN_TIMESTEPS, timesteps.new_zeros(1)]))
