"""Frames on their way from the device to the CPU, while the device works on what comes after them.

`model.pipeline` hands out decoded frames with it. It does not know what makes them, or where they go.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.io.pixels import cut

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sent:
    """Frames that are being copied; `wait` returns when they have come."""

    frames: UInt8[Tensor, "n height width 3"]
    wait: Callable[[], None] = lambda: None

    def arrived(self) -> UInt8[Tensor, "n height width 3"]:
        """The frames, on the CPU. Waits for them, and for nothing that the device was given later."""
        self.wait()
        return self.frames


def send(frames: Float[Tensor, "n height width 3"]) -> Sent:
    """Have 8-bit frames copied to the CPU behind all that the device was given so far."""
    if not frames.is_cuda:
        return Sent(cut(frames))
    coming = cut(frames).to("cpu", non_blocking=True)  # into pinned memory
    return Sent(coming, torch.cuda.current_stream(frames.device).record_event().synchronize)


def ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The same items, each when `count` more have been asked for, so that a device always has work."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting
