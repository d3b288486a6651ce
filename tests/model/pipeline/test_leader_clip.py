"""Pieces of a clip on all ranks are those of the whole clip, which only the leader has."""

from __future__ import annotations

import pickle
from itertools import accumulate, pairwise
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from benchmarks.traffic import LiveTensors
from model.io.pixels import padded, stretch_positions, stretched, to_floats
from model.parallel import broadcast
from model.parallel.broadcast import TensorSpec
from model.parallel.mesh import SINGLE, ContextParallel
from model.pipeline.conditioning import StageInputs
from model.pipeline.leader_clip import LeaderClip
from model.spec.geometry import Size

SIZE = Size(16, 24)
LENGTHS = [1, 4, 4, 7, 2]


def frames_in_8_bits(count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 8, 12, 3), dtype=torch.uint8, generator=random)


def whole_clip(source: torch.Tensor) -> torch.Tensor:
    """18 frames, one of them before and three after those of a clip of 14."""
    return padded(stretched(source, SIZE, stretch_positions(len(source), 14)), 1, 3)


@pytest.mark.parametrize(
    "source", [frames_in_8_bits(7), to_floats(frames_in_8_bits(20)), torch.rand(1, 8, 12, 3)]
)
def test_pieces_are_those_of_the_clip_made_at_once(source):
    clip = LeaderClip.stretched(source, SIZE, 14).padded(1, 3)
    pieces = [clip.read(SINGLE, slice(start, start + 4)) for start in range(0, 18, 4)]
    assert torch.equal(torch.cat(pieces), whole_clip(to_floats(source)))


def test_unchanged_clip_has_the_frames_of_its_source():
    source = torch.rand(5, 8, 12, 3)
    clip = LeaderClip.unchanged(source).padded(2, 0)
    assert torch.equal(clip.read(SINGLE, slice(0, 7)), padded(source, 2, 0))


def test_memory_of_reading_does_not_grow_with_the_clip():
    peaks = []
    for count in (20, 200):
        clip = LeaderClip.stretched(frames_in_8_bits(count), SIZE, 2 * count)
        with LiveTensors() as alive:
            for start in range(0, 2 * count, 4):
                clip.read(SINGLE, slice(start, start + 4))
        peaks.append(alive.peak_bytes)
    assert peaks[0] == peaks[1]


def test_frames_are_not_pickled():
    clip = LeaderClip.stretched(frames_in_8_bits(7), SIZE, 14)
    received = pickle.loads(pickle.dumps(clip))
    assert (received.source, received.size) == (TensorSpec((7, 8, 12, 3), torch.uint8), SIZE)
    assert torch.equal(received.positions, clip.positions)


def clip_of_leader(
    parallel: ContextParallel, source: torch.Tensor, size: Size, lengths: list[int]
) -> tuple[list[torch.Tensor], int]:
    """Pieces of these lengths of a clip that only the leader has, and how many bytes are sent for them."""
    clip = LeaderClip.stretched(source, size, 14).padded(1, 3)
    inputs = StageInputs(torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, dtype=torch.uint8), clip)
    received = broadcast.from_leader(parallel, lambda: inputs).condition
    assert received
    assert isinstance(received.source, torch.Tensor) == parallel.is_leader
    sent_bytes, run = 0, dist.broadcast

    def counted(x, **options):
        nonlocal sent_bytes
        sent_bytes += x.nbytes
        return run(x, **options)

    with patch.object(dist, "broadcast", counted):
        ends = list(accumulate(lengths, initial=0))
        pieces = [received.read(parallel, slice(*piece)) for piece in pairwise(ends)]
    return pieces, sent_bytes


@pytest.mark.parametrize("source", [frames_in_8_bits(7), to_floats(frames_in_8_bits(7))])
def test_every_rank_gets_the_frames_of_a_piece_alone(ranks, source):
    """The pieces lie among 1, 3, 4, 4 and 1 frames of the source."""
    whole = whole_clip(to_floats(source))
    for pieces, sent_bytes in ranks.run(clip_of_leader, 3, source, SIZE, LENGTHS):
        assert torch.equal(torch.cat(pieces), whole)
        assert sent_bytes == 13 * source[0].numel() * 4
