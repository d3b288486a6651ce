"""Over slow links, heads are exchanged in slices while attention computes: exact, and as hidden as stated."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist

from model.parallel import links, mesh
from model.parallel.links import EXCHANGED_BYTES, SLOW_BYTES_PER_S, has_slow_links
from model.parallel.mesh import ContextParallel, divide
from model.parallel.ulysses import tokens_to_heads
from model.pipeline.sample import Conditioning, denoise
from model.transformer import attention, token_layout
from model.transformer.attention import KV
from model.transformer.config import BrickConfig, DitConfig
from model.transformer.token_layout import Window, build_layout
from tests.model.parity_cases import CPU
from tests.model.random_dit import random_dit
from tests.model.rank_jobs import CountedWork, Forward

CUDA = torch.device("cuda")
CONFIG = DitConfig(
    hidden_size=96,
    depth=2,
    num_heads=8,
    caption_channels=8,
    adaln_tembed_dim=8,
    frequency_embedding_size=16,
    bsa_params=BrickConfig(0.5, None, (2, 2, 2), (2, 2, 2)),
)
FORWARDS = {
    "dense": Forward(CONFIG, Window(3, 4, 8)),
    "padded shards": Forward(CONFIG, Window(3, 6, 10)),
    "condition frames": Forward(CONFIG, Window(5, 6, 6, num_condition=2)),
    "cached condition frames": Forward(CONFIG, Window(3, 6, 6), num_cached=2),
    "bricks": Forward(CONFIG, Window(4, 8, 12), sparse=True),
}


@contextmanager
def exchanged_bytes() -> Iterator[list[int]]:
    """Record the bytes of each exchange of heads or tokens."""
    exchange, sizes = dist.all_to_all_single, []

    def counted(received, given, **options):
        sizes.append(given.nbytes)
        return exchange(received, given, **options)

    with patch.object(dist, "all_to_all_single", counted):
        yield sizes


def with_and_without_slices(
    parallel: ContextParallel, forward: Forward
) -> list[tuple[torch.Tensor, list[int]]]:
    """The velocity over fast links and over slow ones, with the bytes of each exchange."""
    found = []
    for ranks in (parallel, dataclasses.replace(parallel, has_slow_links=True)):
        with exchanged_bytes() as sizes:
            found.append((forward(ranks), sizes))
    return found


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", FORWARDS)
def test_exchanges_in_slices_send_the_same_bytes_and_change_no_bit(ranks, name, size):
    forward = FORWARDS[name]
    num_slices = 4 if forward.sparse and size == 2 else 2
    for (whole, of_whole), (sliced, of_slices) in ranks.run(with_and_without_slices, size, forward):
        assert torch.equal(whole, sliced)
        assert sum(of_whole) == sum(of_slices)
        once = CONFIG.depth if forward.num_cached else 0  # the pass over condition frames has one slice
        assert len(of_whole) == 2 * (CONFIG.depth + once)
        assert len(of_slices) == 2 * (CONFIG.depth * num_slices + once)


@pytest.mark.integration
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
@pytest.mark.parametrize(("name", "num_slices"), [("dense", 2), ("bricks", 4)])
def test_slices_between_compiled_parts_change_no_bit(ranks, name, num_slices, backend):
    forward = replace(FORWARDS[name], backend=backend)
    for (whole, of_whole), (sliced, of_slices) in ranks.run(with_and_without_slices, 2, forward):
        assert torch.equal(whole, sliced)
        assert (len(of_whole), len(of_slices)) == (2 * CONFIG.depth, 2 * CONFIG.depth * num_slices)


def guided_with_and_without_slices(
    parallel: ContextParallel, config: DitConfig
) -> list[tuple[torch.Tensor, list[int]]]:
    """Where a loop with split guidance ends over fast links and slow ones, with the bytes of exchanges."""
    assert parallel.cfg_branch
    dit, draw, found = random_dit(config), torch.Generator().manual_seed(3), []
    start = torch.randn(1, 16, 3, 4, 8, generator=draw)
    conditioning = Conditioning(
        start=start,
        clean=start[:, :, :0],
        text=torch.randn(2, 5, config.caption_channels, generator=draw),
        mask=torch.ones(2, 5, dtype=torch.long),
        timesteps=torch.tensor([900.0, 500.0]),
        sigmas=torch.tensor([0.9, 0.5, 0.0]),
        guidance_scale=4.0,
    )
    for slow in (False, True):
        branch = dataclasses.replace(parallel.cfg_branch, has_slow_links=slow)
        with exchanged_bytes() as sizes:
            *_, last = denoise(dit, conditioning, dataclasses.replace(parallel, cfg_branch=branch))
        found.append((last, sizes))
    return found


def test_slices_of_the_halves_of_split_guidance_change_no_bit(ranks):
    """Each half of the four ranks exchanges heads for one text, in two steps."""
    for (whole, of_whole), (sliced, of_slices) in ranks.run(guided_with_and_without_slices, 4, CONFIG):
        assert torch.equal(whole, sliced)
        assert sum(of_whole) == sum(of_slices)
        assert (len(of_whole), len(of_slices)) == (2 * 2 * CONFIG.depth, 2 * 2 * CONFIG.depth * 2)


def exchanges_of_failed_forward(
    parallel: ContextParallel, forward: Forward, failing: int
) -> tuple[list[bool], bool]:
    """Fail in attention to one of the slices of the first block.

    Return whether each exchange was waited for, and whether the next forward is the same as the one before.
    """
    ranks = dataclasses.replace(parallel, has_slow_links=True)
    exchange, work, calls = dist.all_to_all_single, [], count()

    def counted(received, given, **options):
        work.append(CountedWork(exchange(received, given, **options)))
        return work[-1]

    def attend(q, *rest, **options):
        if next(calls) == failing:
            raise MemoryError("no room")
        return attention.attend(q, *rest, **options)

    before = forward(ranks)
    with (
        patch.object(dist, "all_to_all_single", counted),
        patch.object(token_layout, "attend", attend),
        suppress(MemoryError),
    ):
        forward(ranks)
    return [each.waited for each in work], torch.equal(before, forward(ranks))


@pytest.mark.parametrize("failing", [0, 1])
def test_error_in_attention_to_a_slice_leaves_no_exchange_under_way(ranks, failing):
    """Both slices are on their way to attention when it begins, and the result of the first to return."""
    for waited, is_same in ranks.run(exchanges_of_failed_forward, 2, FORWARDS["dense"], failing):
        assert waited == [True] * (2 + failing)
        assert is_same


def test_error_at_the_start_of_an_exchange_leaves_none_under_way(monkeypatch):
    started: list[Mock] = []

    def exchange(*_, **__):
        if started:
            raise MemoryError("no room")
        started.append(Mock())
        return started[0]

    monkeypatch.setattr(dist, "all_to_all_single", exchange)
    tensors = [torch.zeros(1, 1, 2, 4, 2)]
    with (
        pytest.raises(MemoryError),
        closing(tokens_to_heads(ContextParallel(size=2), tensors, 4, num_slices=2)) as slices,
    ):
        next(slices)
    started[0].wait.assert_called_once_with()


@pytest.mark.parametrize(
    ("num_heads", "size", "sparse", "num_slices"),
    [(32, 8, False, 2), (32, 8, True, 4), (32, 16, True, 2), (32, 32, False, 1), (12, 2, True, 2)],
)
def test_slices_divide_the_heads_of_a_rank_evenly(num_heads, size, sparse, num_slices):
    assert slices_of(num_heads, sparse, ContextParallel(size=size, has_slow_links=True)) == num_slices


def test_rings_and_fast_links_have_one_slice():
    heads = ContextParallel(size=2, has_slow_links=True)
    ring = ContextParallel(size=4, ring_and_heads=(ContextParallel(size=2), heads), has_slow_links=True)
    assert slices_of(32, False, ring) == slices_of(32, False, ContextParallel(size=4)) == 1


def slices_of(num_heads: int, sparse: bool, parallel: ContextParallel) -> int:
    return build_layout(CONFIG, Window(4, 8, 16), parallel, sparse=sparse)._num_slices(num_heads)


def test_chunks_of_heads_are_consecutive_views():
    k, v = torch.arange(24.0).view(2, 4, 3, 1), -torch.arange(24.0).view(2, 4, 3, 1)
    first, second = KV(k, v).chunk_heads(2)
    assert torch.equal(first.k, k[:, :2])
    assert torch.equal(second.v, v[:, 2:])
    assert second.k.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()


@dataclass
class VirtualGpu:
    """A GPU on a virtual clock, with a link that transfers one exchange after the other meanwhile."""

    s_per_byte: float
    attention_s: float
    now_s: float = 0.0
    free_s: float = field(default=0.0, init=False)

    def exchange(self, received, given, group, async_op):
        assert async_op
        received.copy_(given)
        self.free_s = max(self.now_s, self.free_s) + given.nbytes * self.s_per_byte
        return VirtualWork(self, self.free_s)

    def attend(self, q, *_, **__):
        self.now_s += self.attention_s * q.shape[1] / (CONFIG.num_heads / SIZE)
        return torch.empty_like(q)


@dataclass
class VirtualWork:
    gpu: VirtualGpu
    ends_s: float

    def wait(self) -> None:
        self.gpu.now_s = max(self.gpu.now_s, self.ends_s)


SIZE = 2


def waited_s(monkeypatch, exchanges_s: float, attention_s: float, *, sparse: bool, slow: bool) -> float:
    """Return how long attention of one block waits for its exchanges, which take so long together."""
    layout = build_layout(
        CONFIG, Window(4, 8, 8), ContextParallel(size=SIZE, has_slow_links=slow), sparse=sparse
    )
    qkv = torch.zeros(3, 1, layout.num_groups, layout.shard_size, CONFIG.num_heads, CONFIG.head_dim)
    gpu = VirtualGpu(exchanges_s / (4 * qkv[0].nbytes), attention_s)
    monkeypatch.setattr(dist, "all_to_all_single", gpu.exchange)
    monkeypatch.setattr(token_layout, "attend", gpu.attend)
    monkeypatch.setattr(token_layout, "block_sparse_attention", gpu.attend)
    layout.attend(tuple(qkv), None)
    return gpu.now_s - attention_s


@pytest.mark.parametrize("exchanges_s", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("sparse", "num_slices"), [(False, 2), (True, 4)])
def test_exchanges_that_are_faster_than_attention_are_hidden_but_for_one_slice(
    monkeypatch, exchanges_s, sparse, num_slices
):
    hidden = waited_s(monkeypatch, exchanges_s, 1.0, sparse=sparse, slow=True)
    assert hidden == pytest.approx(exchanges_s / num_slices)
    assert waited_s(monkeypatch, exchanges_s, 1.0, sparse=sparse, slow=False) == pytest.approx(exchanges_s)


def test_exchanges_that_are_slower_than_attention_set_the_pace(monkeypatch):
    """All queries, keys and values come, the second half is attended to, and its result returns."""
    waited = waited_s(monkeypatch, 3.0, 1.0, sparse=False, slow=True)
    assert waited + 1.0 == pytest.approx(3.0 * 3 / 4 + 1.0 / 2 + 3.0 / 4 / 2)


def measured_links(parallel: ContextParallel) -> float:
    """The rate of the links among these ranks."""
    with patch.object(links, "EXCHANGED_BYTES", 1 << 10):
        return links.sent_bytes_per_s(parallel.device, parallel.group)


def test_all_ranks_measure_the_links_of_the_slowest(ranks):
    slowest, *others = ranks.run(measured_links, 4)
    assert slowest > 0
    assert others == [slowest] * 3


def test_rate_is_that_of_the_fastest_exchange_after_the_first(monkeypatch):
    """Four exchanges among four ranks, of which each keeps a quarter."""
    clock_s = iter([0.0, 9.0, 10.0, 10.5, 11.0, 11.25, 12.0, 13.0])
    monkeypatch.setattr(dist, "get_world_size", lambda _: 4)
    monkeypatch.setattr(dist, "all_to_all_single", lambda *_, **__: None)
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: None)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock_s))
    assert links.sent_bytes_per_s(torch.device("cpu"), None) == EXCHANGED_BYTES * 3 / 4 / 0.25


@pytest.mark.parametrize("is_slow", [True, False])
def test_links_are_slow_below_a_rate(monkeypatch, is_slow):
    rate = SLOW_BYTES_PER_S * (0.99 if is_slow else 1.0)
    monkeypatch.setattr(links, "sent_bytes_per_s", lambda *_: rate)
    monkeypatch.setattr(dist, "get_world_size", lambda _: 2)
    assert has_slow_links(CUDA, None) is is_slow


def test_links_of_a_cpu_or_a_single_rank_are_not_measured(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda _: 1)
    assert not has_slow_links(CUDA, None)
    assert not has_slow_links(torch.device("cpu"), None)


def places_with_slow_links(parallel: ContextParallel) -> dict[str, bool]:
    """The places of a rank that know slow links, if all groups of two ranks have them."""
    with patch.object(mesh, "has_slow_links", lambda _, group: dist.get_world_size(group) == 2):
        whole, ring = (divide(CPU, 4, ring_degree=degree) for degree in (1, 2))
    assert whole.cfg_branch is not None
    places = {
        "group": whole,
        "heads": ring.heads,
        "branch": whole.cfg_branch,
        "branch heads": whole.cfg_branch.heads,
    }
    return {name: place.has_slow_links for name, place in places.items()}


def test_every_process_group_knows_its_links(ranks):
    """All links in groups of two ranks are taken for slow."""
    of_two = {"heads": True, "branch": True, "branch heads": True}
    assert ranks.run(places_with_slow_links, 4) == [{"group": False, **of_two}] * 4
