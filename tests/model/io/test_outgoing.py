"""Frames that leave the device while it goes on; on a CPU they are there at once."""

from __future__ import annotations

import pytest
import torch

from model.io.outgoing import PendingFrames, run_ahead, start_copy
from model.io.pixels import to_uint8


def test_frames_are_cut_to_255_levels():
    frames = torch.tensor([0.0, 0.5, 0.999, 1.0]).view(1, 1, 4, 1).expand(-1, -1, -1, 3)
    assert start_copy(to_uint8(frames)).result()[0, 0, :, 0].tolist() == [0, 127, 254, 255]


def test_result_waits_for_the_end_of_the_copy():
    frames = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)

    def finish_copy() -> None:
        frames.fill_(7)

    sent = PendingFrames(frames, finish_copy)
    assert sent.frames.max() == 0
    assert sent.result().min() == 7


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_so_many_more_are_asked_for_before_an_item_is_given(count):
    asked = []

    def items():
        for number in range(5):
            asked.append(number)
            yield number

    given = []
    for number in run_ahead(items(), count):
        given.append(number)
        assert len(asked) == min(5, number + 1 + count)
    assert given == [0, 1, 2, 3, 4]


def test_of_no_items_none_is_given():
    assert list(run_ahead([], 3)) == []
