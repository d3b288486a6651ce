"""Skip most blocks at a step whose first block adds nearly what it added before (first-block cache).

This is the first-block form of TeaCache (arXiv 2411.19108): an approximation, used only for a plan that asks
for it. A step that runs all blocks depends on no earlier step, so a job that resumes there gives the same
result as one that never stopped.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel
from model.parallel.sharding import gather


class FullStep(NamedTuple):
    """The updates of the first block (noise tokens alone) and of the others at a step that ran all."""

    first_update: Float[Tensor, "b noise_g filled_m c"]
    others_update: Float[Tensor, "b g m c"]


class StepCache:
    """The last full step, and the decision to reuse what its later blocks added.

    They are reused if the update of the first block has changed by less than `threshold`: the sum of absolute
    differences, relative to the sum of absolute values, over all noise tokens, texts and ranks. To decide,
    the host waits for the device once in a step.
    """

    def __init__(self, threshold: float, parallel: ContextParallel) -> None:
        """Make an empty cache. `parallel` is the whole group, also where guidance is split into branches."""
        self._threshold = threshold
        self._parallel = parallel
        self._last: FullStep | None = None
        self.reused = False  # whether the latest step skipped the later blocks

    def run_or_reuse(
        self,
        first_update: Float[Tensor, "b noise_g filled_m c"],
        x: Float[Tensor, "b g m c"],
        run_others: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "b g m c"]:
        """Return the tokens after all blocks, given those after the first block (`x`).

        `first_update` is what the first block added to this rank's noise tokens, without padding.
        `run_others` runs the later blocks.
        """
        if self._last and self._is_near(first_update, self._last.first_update):
            self.reused = True
            return x + self._last.others_update
        self.reused = False
        self._last = None  # freed before the other blocks need the memory
        out = run_others(x)
        self._last = FullStep(first_update, out - x)
        return out

    def _is_near(self, update: Tensor, before: Tensor) -> bool:
        """Compare two updates. All ranks add the same sums in the same order, so they decide alike."""
        local = torch.stack([part.abs().sum(dtype=torch.float32) for part in (update - before, before)])
        sums = gather(self._parallel, local[None, None, None], self._parallel.size).sum(2)
        change, total = sums.flatten().tolist()
        return bool(change < self._threshold * total)
