"""Attention over a ring of ranks is exact, and sends what the arithmetic says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from math import inf, log
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from model.parallel.mesh import SINGLE, ContextParallel, divide
from model.parallel.ring import pass_around
from model.pipeline.request import Request
from model.pipeline.sample import denoise
from model.spec.errors import GroupError
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.transformer.attention import KV, PartialAttention, attend, attend_partially, attend_to_parts, merge
from model.transformer.config import BrickConfig, DitConfig
from model.transformer.token_layout import Window
from tests.model import rank_jobs
from tests.model.parallel.test_parallel import CASES, guided_conditioning, request_of, single
from tests.model.parity_cases import CPU, load_dit, velocity
from tests.model.rank_jobs import Forward


def integration(*cases):
    return [pytest.param(*case, marks=pytest.mark.integration) for case in cases]


RINGS = [(4, 2), (3, 3), *integration((2, 2), (4, 4))]
"""Number of ranks, and how many of them are in a ring."""
PUBLISHED = [
    *(("block_sparse", 4, 2), ("i2v", 4, 2)),
    *integration(*((case, *ring) for case in CASES for ring in ((2, 2), (3, 3), (4, 4)))),
    *integration(*((case, 4, 2) for case in CASES if case not in {"block_sparse", "i2v"})),
]

CONFIG = DitConfig(
    hidden_size=48,
    depth=2,
    num_heads=4,
    caption_channels=8,
    adaln_tembed_dim=8,
    frequency_embedding_size=16,
    bsa_params=BrickConfig(0.5, None, (2, 2, 2), (2, 2, 2)),
)
TWO_HEADS = DitConfig(**{**vars(CONFIG), "num_heads": 2})
FORWARDS = {
    "fifteen tokens of a frame": Forward(CONFIG, Window(3, 6, 10)),
    "fewer tokens than ranks": Forward(CONFIG, Window(3, 2, 4)),
    "condition frames": Forward(CONFIG, Window(5, 6, 6, num_condition=2)),
    "condition frames, fewer tokens than ranks": Forward(CONFIG, Window(3, 2, 6, num_condition=2)),
    "cached condition frames": Forward(CONFIG, Window(3, 6, 6), num_cached=2),
    "cached condition frames, fewer tokens than ranks": Forward(CONFIG, Window(3, 2, 4), num_cached=2),
    "bricks": Forward(CONFIG, Window(4, 8, 12), sparse=True),
    "bricks of condition frames": Forward(CONFIG, Window(6, 8, 12, num_condition=2), sparse=True),
    "fewer bricks in a layer than ranks": Forward(CONFIG, Window(4, 4, 4), sparse=True),
}


def whole_softmax(q, k, v):
    """Attention in double precision, as defined."""
    scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v.double(), scores.logsumexp(-1)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 99),
    sharpness=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_merged_parts_are_the_softmax_over_all_keys(lengths, seed, sharpness):
    """A part without keys counts as one whose sum of exponentials is 0."""
    draw = torch.Generator().manual_seed(seed)
    q = sharpness * torch.randn(1, 2, 5, 8, generator=draw)
    k, v = (torch.randn(1, 2, sum(lengths), 8, generator=draw) for _ in range(2))
    merged = PartialAttention(torch.zeros_like(q), torch.full(q.shape[:3], -inf))
    for keys, values in zip(k.split(lengths, 2), v.split(lengths, 2), strict=True):
        out, lse = whole_softmax(q, keys, values)
        merged = merge(merged, PartialAttention(out.float(), lse.float()))
    out, lse = whole_softmax(q, k, v)
    # Weights are exponentials of log-sum-exps, which float32 rounds: those near 300 by 1.5e-5.
    rounding = lse.abs().max().item() * torch.finfo(torch.float32).eps
    torch.testing.assert_close(merged.out.double(), out, rtol=0, atol=1e-5 + 2 * rounding)
    torch.testing.assert_close(merged.lse.double(), lse, rtol=1e-6, atol=1e-5)


def test_queries_without_keys_in_some_parts_are_merged_row_by_row():
    one = PartialAttention(torch.tensor([[[[1.0], [2.0], [3.0]]]]), torch.tensor([[[0.0, -inf, -inf]]]))
    other = PartialAttention(torch.tensor([[[[5.0], [6.0], [7.0]]]]), torch.tensor([[[log(3), 1.0, -inf]]]))
    merged = merge(one, other)
    torch.testing.assert_close(merged.out, torch.tensor([[[[4.0], [6.0], [0.0]]]]))
    torch.testing.assert_close(merged.lse, torch.tensor([[[log(4), 1.0, -inf]]]))


def test_parts_in_half_precision_are_merged_in_single():
    merged = merge(
        *(PartialAttention(torch.ones(1, 1, 1, 1).bfloat16(), torch.zeros(1, 1, 1)) for _ in range(2))
    )
    assert merged.out.dtype == merged.lse.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_part_of_attention_is_returned_with_the_log_sum_of_exponentials(dtype):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 8, generator=draw).to(dtype).transpose(1, 2) for n in (5, 7, 7))
    out, lse = attend_partially(q, k, v)
    expected, expected_lse = whole_softmax(q, k, v)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=tolerance)


@given(
    parts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=4),
    own=st.integers(0, 3),
)
def test_attention_to_parts_is_attention_to_all_keys(parts, own):
    """Each part has condition tokens and others; the queries are those of one of the parts."""
    num_condition, num_noise = parts[own % len(parts)]
    draw = torch.Generator().manual_seed(1)
    q = torch.randn(2, 3, num_condition + num_noise, 8, generator=draw)
    kvs = [KV(*torch.randn(2, 2, 3, sum(part), 8, generator=draw)) for part in parts]
    found = attend_to_parts(q, zip(kvs, (part[0] for part in parts), strict=True), num_condition)
    of_condition, of_noise = (
        KV(
            *(
                torch.cat([x[:, :, take(part[0])] for x, part in zip(each, parts, strict=True)], 2)
                for each in zip(*kvs, strict=True)
            )
        )
        for take in (slice, lambda start: slice(start, None))
    )
    if num_condition:
        torch.testing.assert_close(
            found[:, :, :num_condition],
            attend(q[:, :, :num_condition], of_condition.k, of_condition.v),
            rtol=0,
            atol=1e-5,
        )
    if num_noise:
        both = of_condition.append(of_noise.k, of_noise.v)
        expected = attend(q[:, :, num_condition:], both.k, both.v)
        torch.testing.assert_close(found[:, :, num_condition:], expected, rtol=0, atol=1e-5)


def places_in_ring(parallel: ContextParallel) -> dict[str, list[int]]:
    """The ranks with which this one shares each of its places."""
    branch = parallel.cfg_branch
    of_branch = (
        {} if branch is None else {"branch": branch, "branch ring": branch.ring, "branch heads": branch.heads}
    )
    places = {"ring": parallel.ring, "heads": parallel.heads, **of_branch}
    return {
        name: [dist.get_rank()] if place.group is None else dist.get_process_group_ranks(place.group)
        for name, place in places.items()
    }


def test_ranks_of_a_ring_are_one_of_each_set_of_consecutive_ranks(ranks):
    found = ranks.run(places_in_ring, 4, ring_degree=2)
    assert [place["heads"] for place in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [place["ring"] for place in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]


def test_split_guidance_halves_the_ring_first(ranks):
    two, four = (ranks.run(places_in_ring, 4, ring_degree=degree) for degree in (2, 4))
    assert [place["branch heads"] for place in two] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [place["branch ring"] for place in two] == [[0], [1], [2], [3]]
    assert [place["branch ring"] for place in four] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def refused_ring(parallel: ContextParallel, ring_degree: int) -> str:
    """Why these ranks cannot have a ring of a size."""
    try:
        divide(CPU, parallel.size, ring_degree=ring_degree)
    except GroupError as error:
        return str(error)
    return "nothing"


def test_ranks_that_a_ring_does_not_divide_are_refused(ranks):
    assert ranks.run(refused_ring, 4, 3) == ["4 ranks cannot be divided by a ring of 3"] * 4


def test_only_the_ranks_that_divide_heads_must_divide_them_evenly():
    four = ContextParallel(size=8, ring_and_heads=(ContextParallel(size=2), ContextParallel(size=4)))
    four.check_heads(12)
    with pytest.raises(GroupError, match="4 ranks cannot share 6 attention heads"):
        four.check_heads(6)


def passed_around(parallel: ContextParallel, lengths: list[int]) -> list[tuple[int, torch.Tensor]]:
    """The tensor of each rank of the ring, which holds its number."""
    own = torch.full((2, lengths[parallel.ring.rank], 1, 3), float(parallel.ring.rank))
    with closing(pass_around(parallel.ring, [own], lengths)) as passing:
        return [(number, tensors[0]) for number, tensors in passing]


@pytest.mark.parametrize(
    ("size", "degree", "lengths"), [(2, 2, [3, 5]), (4, 4, [4, 2, 0, 0]), (3, 3, [0, 7, 1])]
)
def test_each_rank_gets_the_tensors_of_all_ranks_of_its_ring(ranks, size, degree, lengths):
    answers = ranks.run(passed_around, size, lengths, ring_degree=degree)
    for rank, answer in enumerate(answers):
        assert [number for number, _ in answer] == [(rank - step) % size for step in range(size)]
        for number, tensor in answer:
            assert torch.equal(tensor, torch.full((2, lengths[number], 1, 3), float(number)))


def passed_around_after_failure(parallel: ContextParallel) -> list[tuple[int, torch.Tensor]]:
    """The same, after all ranks failed with an exchange under way."""

    def fail() -> None:
        own = torch.full((2, 4, 1, 3), -1.0)
        with closing(pass_around(parallel.ring, [own], [4] * parallel.ring.size)) as passing:
            next(passing)
            raise MemoryError("no room")

    with suppress(MemoryError):
        fail()
    return passed_around(parallel, [4] * parallel.ring.size)


def test_exchange_that_was_under_way_at_an_error_disturbs_no_later_one(ranks):
    for answer in ranks.run(passed_around_after_failure, 4, ring_degree=4):
        assert all((tensor == number).all() for number, tensor in answer)


def passed_to_idle_ranks(parallel: ContextParallel, timeout: timedelta) -> str | None:
    """Why rank 0 cannot pass a tensor around a ring whose other ranks do nothing; None on these."""
    divided = divide(CPU, parallel.size, ring_degree=parallel.ring.size, timeout=timeout)
    if not divided.is_leader:
        return None
    try:
        passed_around(divided, [4] * divided.ring.size)
    except RuntimeError as error:
        return str(error)
    return "nothing"


@pytest.mark.faults
def test_exchange_with_ranks_that_do_not_take_part_ends_after_the_timeout(ranks):
    answers = ranks.run(passed_to_idle_ranks, 4, timedelta(seconds=30), ring_degree=2)
    assert "Timed out waiting 30000ms" in answers[0]


@pytest.mark.parametrize(("case", "size", "degree"), PUBLISHED)
def test_forward_on_a_ring_equals_forward_on_one_device(ranks, case, size, degree):
    alone, published = velocity(case, SINGLE)
    for ours in ranks.run(rank_jobs.velocity, size, case, ring_degree=degree):
        torch.testing.assert_close(ours, alone, rtol=0, atol=2e-5)
        torch.testing.assert_close(ours, published, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("size", "degree"), RINGS)
@pytest.mark.parametrize("name", FORWARDS)
def test_forward_on_a_ring_is_exact_for_shapes_that_it_divides_unevenly(ranks, name, size, degree):
    alone = FORWARDS[name](SINGLE)
    for ours in ranks.run(FORWARDS[name], size, ring_degree=degree):
        torch.testing.assert_close(ours, alone, rtol=0, atol=2e-5)


def test_more_ranks_than_heads_make_a_video_with_a_ring(ranks):
    with pytest.raises(GroupError, match="4 ranks cannot share 2 attention heads"):
        ContextParallel(size=4).check_heads(TWO_HEADS.num_heads)
    forward = Forward(TWO_HEADS, Window(3, 6, 10))
    for ours in ranks.run(forward, 4, ring_degree=2):
        torch.testing.assert_close(ours, forward(SINGLE), rtol=0, atol=2e-5)


@contextmanager
def counted_bytes() -> Iterator[dict[str, int]]:
    """Count what leaves this rank in the exchanges around attention."""
    sent = {"all_to_all_single": 0, "all_gather": 0, "batch_isend_irecv": 0}
    run = {name: getattr(dist, name) for name in sent}

    def all_to_all_single(received, given, group, async_op):
        sent["all_to_all_single"] += (
            given.nbytes // dist.get_world_size(group) * (dist.get_world_size(group) - 1)
        )
        return run["all_to_all_single"](received, given, group=group, async_op=async_op)

    def all_gather(received, given, group):
        sent["all_gather"] += given.nbytes * (dist.get_world_size(group) - 1)
        return run["all_gather"](received, given, group=group)

    def batch_isend_irecv(transfers):
        sent["batch_isend_irecv"] += sum(each.tensor.nbytes for each in transfers if each.op is dist.isend)
        return run["batch_isend_irecv"](transfers)

    with patch.multiple(
        dist, all_to_all_single=all_to_all_single, all_gather=all_gather, batch_isend_irecv=batch_isend_irecv
    ):
        yield sent


def forward_and_bytes_sent(
    parallel: ContextParallel, forward: Forward
) -> tuple[torch.Tensor, dict[str, int]]:
    """The velocity, and how many bytes this rank sends for it, by the name of the function."""
    with counted_bytes() as sent:
        return forward(parallel), sent


@pytest.mark.parametrize("size_and_degree", [(4, 2), *integration(((4, 1),), ((4, 4),))])
@pytest.mark.parametrize("sparse", [False, True])
def test_ring_sends_what_the_formulas_say(ranks, sparse, size_and_degree):
    size, degree = size_and_degree
    forward = Forward(CONFIG, Window(4, 8, 16), sparse=sparse)
    among = size // degree
    tensor = 2 * 4 * 32 * CONFIG.hidden_size * 4  # bytes of two samples of 4 frames of 32 tokens in fp32
    result = 2 * 4 * 32 * 64 * 4 // size * (size - 1)  # of patches of 64 values, to all other ranks
    parts = CONFIG.depth * 2 * tensor // size * (degree - 1)
    for ours, sent in ranks.run(forward_and_bytes_sent, size, forward, ring_degree=degree):
        torch.testing.assert_close(ours, forward(SINGLE), rtol=0, atol=2e-5)
        assert sent == {
            "all_to_all_single": CONFIG.depth * 4 * tensor // size * (among - 1) // among,
            "batch_isend_irecv": 0 if sparse else parts,
            "all_gather": result + (parts if sparse else 0),
        }


@pytest.mark.parametrize(
    ("cached", "degree"),
    [(False, 4), (True, 2), *integration((False, 2), (True, 4))],
)
def test_guidance_is_split_between_the_halves_of_a_ring(ranks, cached, degree, parity_checkpoint):
    dit = load_dit(parity_checkpoint)
    conditioning = guided_conditioning(dit, cached=cached)
    *_, alone = denoise(dit, conditioning, SINGLE)
    for latents, _ in ranks.run(
        rank_jobs.guided, 4, parity_checkpoint, conditioning, True, ring_degree=degree
    ):
        torch.testing.assert_close(latents, alone, rtol=0, atol=5e-5)


@pytest.mark.integration
@pytest.mark.parametrize(("size", "degree"), [(4, 4), (3, 3)])
def test_step_cache_is_reused_in_the_same_steps_in_a_ring(
    ranks, size, degree, tiny_checkpoint, tiny_pipeline
):
    params = GenerationParams(quality="balanced", num_frames=5, num_inference_steps=8)
    plan = resolve(params, Inputs(), tiny_pipeline.limits, step_cache=0.4)  # some steps are reused
    request = Request(plan, ("a cat",), seed=5)
    alone = single(tiny_pipeline, request)
    answers = ranks.run(rank_jobs.generate, size, tiny_checkpoint, request, ring_degree=degree)
    for answer in answers:
        torch.testing.assert_close(answer["latents"], alone["latents"], rtol=0, atol=2e-4)
    assert [state.step for state in answers[0]["states"]] == [state.step for state in alone["states"]]


@pytest.mark.integration
@pytest.mark.parametrize(("size", "degree"), RINGS)
def test_long_refined_video_is_equal_in_a_ring(ranks, size, degree, tiny_checkpoint, tiny_pipeline):
    options = {"num_frames": 5, "num_condition_frames": 1, "num_inference_steps": 2, "refine": True}
    request = request_of(tiny_pipeline, "a cat", "a dog", **options)
    alone = single(tiny_pipeline, request)
    leader, *others = ranks.run(rank_jobs.generate, size, tiny_checkpoint, request, ring_degree=degree)
    for answer in (leader, *others):
        assert answer["kinds"] == alone["kinds"]
        for ours, theirs in zip(answer["latents"], alone["latents"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    assert (leader["frames"].int() - alone["frames"].int()).abs().max() <= 2


@pytest.mark.integration
def test_ranks_of_a_ring_share_weights_without_changing_a_bit(ranks, tiny_checkpoint, tiny_pipeline):
    options = {"num_frames": 5, "num_inference_steps": 1, "distilled": True}
    requests = [request_of(tiny_pipeline, "a cat", **options)]
    arguments = tiny_checkpoint, requests, torch.float32, "none"
    for answer in ranks.run(rank_jobs.with_and_without_sharding, 4, *arguments, ring_degree=2):
        ((whole, shards),) = answer
        assert whole
        assert all(torch.equal(expected, ours) for expected, ours in zip(whole, shards, strict=True))


@pytest.mark.integration
def test_compiled_forward_in_a_ring_equals_the_published_one(ranks):
    for ours in ranks.run(rank_jobs.compiled_velocity, 4, "i2v", "aot_eager", ring_degree=2):
        torch.testing.assert_close(ours, velocity("i2v", SINGLE)[1], rtol=0, atol=3e-5)
