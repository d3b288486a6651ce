"""Steps that are computed in part: where the first block adds what it added before, so would the others.

The first-block form of TeaCache (arXiv 2411.19108): an approximation, which a plan has to ask for.
`model.pipeline` keeps one `StepCache` for each stage that may use it, `model.dit` shows it every step. A step
that is computed whole needs nothing of the steps before, so a job that goes on from there takes the same way
as one that never stopped. It does not know what a block computes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from model.parallel.mesh import ContextParallel


class Whole(NamedTuple):
    """What the blocks added in a step that was computed whole: the first one to the noise tokens alone."""

    first: Float[Tensor, "b noise filled c"]
    others: Float[Tensor, "b g m c"]


class StepCache:
    """The last step that was computed whole, and whether a new one may take over what its blocks added.

    It may where the first block's share has changed by less than `threshold`: the sum of absolute
    differences, over that of absolute values, of all noise tokens, for all texts and on all devices together.
    To know that, the host waits for the device once in a step.
    """

    def __init__(self, threshold: float, parallel: ContextParallel) -> None:
        """`parallel` is everybody who works on the video, also where halves make one prediction each."""
        self._threshold = threshold
        self._parallel = parallel
        self._last: Whole | None = None
        self.reused = False  # whether the latest step was computed in part

    def others(
        self,
        added: Float[Tensor, "b noise filled c"],
        x: Float[Tensor, "b g m c"],
        compute: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "b g m c"]:
        """The tokens after all blocks, given those after the first one (`x`); `compute` runs the others.

        `added` is what the first block added to the noise tokens that are here, without padding.
        """
        if self._last and self._is_near(added, self._last.first):
            self.reused = True
            return x + self._last.others
        self.reused = False
        out = compute(x)
        self._last = Whole(added, out - x)
        return out

    def _is_near(self, added: Tensor, before: Tensor) -> bool:
        """The devices' sums are added in one order everywhere: all have the same bits, and decide alike."""
        mine = torch.stack([part.abs().sum(dtype=torch.float32) for part in (added - before, before)])
        sums = self._parallel.gather(mine[None, None, None], self._parallel.size).sum(2)
        change, whole = sums.flatten().tolist()
        return bool(change < self._threshold * whole)
