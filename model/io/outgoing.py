"""Copy frames from the device to the CPU while the device works on later ones."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from model.io.pixels import Pixels

Item = TypeVar("Item")


@dataclass(frozen=True)
class PendingFrames:
    """Frames whose copy may still be in progress; `wait` returns when it is complete."""

    frames: Pixels
    wait: Callable[[], None] = lambda: None

    def result(self) -> Pixels:
        """Wait for the copy, but not for later work of the device, and return the frames on the CPU."""
        self.wait()
        return self.frames


def start_copy(frames: Pixels) -> PendingFrames:
    """Start to copy frames to the CPU, after all work that the device already has."""
    if not frames.is_cuda:
        return PendingFrames(frames)
    copy = frames.to("cpu", non_blocking=True)  # into pinned memory
    return PendingFrames(copy, torch.cuda.current_stream(frames.device).record_event().synchronize)


def run_ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """Yield each item after `count` more have been requested, so that the device always has work."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting
