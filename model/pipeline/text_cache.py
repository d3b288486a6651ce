"""The text as the transformer's blocks attend to it, read once for as long as it stays the same.

`model.pipeline` keeps one `Reading` for the segments of its jobs. It does not know whose the text is.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.pipeline.sample import Read
from model.transformer.dit import Dit, ReadText


@dataclass(frozen=True)
class _Last:
    """What was read last, and what came of it."""

    hidden: Float[Tensor, "b l text"]
    mask: Int[Tensor, "b l"]
    text: ReadText

    def is_of(self, hidden: Float[Tensor, "b2 l text"], mask: Int[Tensor, "b2 l"]) -> bool:
        """Whether it was these texts."""
        return torch.equal(self.hidden, hidden) and torch.equal(self.mask, mask)


class Reading:
    """Remembers the texts that were read last, 0.4 GB for each at full size, under each LoRA.

    A LoRA has keys and values of its own.
    """

    def __init__(self) -> None:
        self._last: dict[str | None, _Last] = {}

    def under(self, lora: str | None) -> Read:
        """A way to read while this LoRA is merged."""
        return partial(self._read, lora)

    def _read(
        self, lora: str | None, dit: Dit, hidden: Float[Tensor, "b l text"], mask: Int[Tensor, "b l"]
    ) -> ReadText:
        last = self._last.get(lora)
        if last and last.is_of(hidden, mask):
            return last.text
        self._last.pop(lora, None)
        del last  # frees its memory for the next
        text = dit.read(hidden, mask)
        self._last[lora] = _Last(hidden, mask, text)
        return text
