"""Any number of ranks gives the result of a single one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.traffic import ranks_on_meta, recorded
from model.parallel import halo
from model.parallel.broadcast import from_leader
from model.parallel.device import least_of_ranks
from model.parallel.mesh import SINGLE, ContextParallel, divide, divide_into_blocks, join
from model.parallel.sharding import gather, shard, shard_length
from model.parallel.ulysses import heads_to_tokens, tokens_to_heads
from model.pipeline.events import Frames, Latents, SegmentDone, Stepped
from model.pipeline.pipeline import Pipeline
from model.pipeline.request import Request
from model.pipeline.sample import Conditioning, denoise
from model.pipeline.schedule import standard
from model.pipeline.state import State
from model.spec.errors import CheckpointError, GroupError, LeaderError
from model.spec.params import GenerationParams
from model.spec.resolve import Inputs, resolve
from model.vae.vae import Vae
from tests.model import rank_jobs
from tests.model.parity_cases import CPU, PARITY, load_dit, velocity

CASES = sorted(path.stem for path in (PARITY / "dit_cases").glob("*.safetensors"))
SIZES = [2, 3, 4]


def request_of(pipeline, *prompts, **options):
    params = GenerationParams(**{"enhance_hf": False, **options})  # or continuations have ten steps more
    plan = resolve(params, Inputs(num_prompts=len(prompts)), pipeline.limits)
    return Request(plan=plan, prompts=prompts, seed=3)


def test_single_rank_is_leader_and_returns_inputs_unchanged():
    x = torch.randn(2, 3, 5, 4)
    assert SINGLE.is_leader
    assert shard(SINGLE, x) is x
    assert gather(SINGLE, x, 5) is x
    assert from_leader(SINGLE, lambda: 7) == 7


def place(parallel: ContextParallel) -> tuple[int, int, bool]:
    return parallel.size, parallel.rank, parallel.is_leader


@pytest.mark.parametrize("size", SIZES)
def test_ranks_are_numbered_and_rank_0_is_leader(ranks, size):
    assert ranks.run(place, size) == [(size, rank, rank == 0) for rank in range(size)]


def timeouts(parallel: ContextParallel, timeout: timedelta) -> dict[str, timedelta]:
    """How long the ranks of each new process group of a ring with shared weights, and of blocks, wait."""
    ranks = divide(CPU, 2, ring_degree=2, shard_weights=True, timeout=timeout)
    four = divide(CPU, 4, ring_degree=2, timeout=timeout)
    assert four.cfg_branch is not None
    groups = {
        "group": ranks.group,
        "ring": ranks.ring.group,
        "weights": ranks.weights_group,
        "heads": four.heads.group,
        "branch": four.cfg_branch.group,
        "counterparts": four.cfg_branch.cfg_group,
        "block": divide_into_blocks(CPU, timeout=timeout).wider[0].group,
    }
    backends = {name: group._get_backend(CPU) for name, group in groups.items() if group}
    return {name: backend.options._timeout for name, backend in backends.items()}


def test_ranks_of_every_process_group_wait_for_each_other_no_longer_than_the_timeout(ranks):
    timeout = timedelta(seconds=77)
    for of_groups in ranks.run(timeouts, 4, timeout):
        assert of_groups == dict.fromkeys(of_groups, timeout)
        assert len(of_groups) == 7


def there_and_back(
    parallel: ContextParallel, tensors: list[torch.Tensor], ordered: bool, num_slices: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Shard tensors, exchange tokens for heads and back in slices, and gather."""
    length, groups_of_frames = tensors[0].shape[2], tensors[0].shape[1]
    sharded = [shard(parallel, x) for x in tensors]
    slices = list(tokens_to_heads(parallel, sharded, length, num_slices, ordered=ordered))
    shard_size, _ = shard_length(parallel, length)
    queries = (qkv[0] for qkv in slices)
    back = heads_to_tokens(parallel, queries, groups_of_frames, shard_size, ordered=ordered)
    by_heads = [torch.cat(of_slices, dim=1) for of_slices in zip(*slices, strict=True)]
    return by_heads, gather(parallel, back.flatten(3), length)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("length", "slices"), [(12, 1), (13, 2), (5, 1), (1, 2)])
def test_ulysses_exchanges_round_trip(ranks, size, length, slices):
    tensors = [torch.randn(2, 3, length, 24, 4) for _ in range(3)]
    answers = ranks.run(there_and_back, size, tensors, True, slices)
    for i, x in enumerate(tensors):
        whole = torch.cat([by_heads[i] for by_heads, _ in answers], dim=1)
        assert torch.equal(whole, x.flatten(1, 2).transpose(1, 2))
    for _, back in answers:
        assert torch.equal(back, tensors[0].flatten(3))


@pytest.mark.parametrize(("size", "slices"), [(2, 3), (3, 1), (4, 2)])
def test_ulysses_exchanges_round_trip_with_the_tokens_of_each_rank_together(ranks, size, slices):
    tensors = [torch.randn(2, 3, 12, 24, 4) for _ in range(3)]
    answers = ranks.run(there_and_back, size, tensors, False, slices)
    for i, x in enumerate(tensors):
        whole = torch.cat([by_heads[i] for by_heads, _ in answers], dim=1)
        by_rank = torch.cat([shard.flatten(1, 2) for shard in x.chunk(size, dim=2)], dim=1)
        assert torch.equal(whole, by_rank.transpose(1, 2))
    for _, back in answers:
        assert torch.equal(back, tensors[0].flatten(3))


def test_tokens_that_come_in_any_order_are_copied_only_to_be_packed_and_to_join_their_heads():
    parallel, shape = ranks_on_meta(4), (1, 3, 5, 12, 4)
    tensors = [torch.empty(shape, device="meta") for _ in range(3)]
    one = tensors[0].numel()
    with recorded(), Copied() as seen:
        ((q, k, _),) = tokens_to_heads(parallel, tensors, 20, ordered=False)
    assert (seen.elements, q.untyped_storage()._cdata) == (3 * one, k.untyped_storage()._cdata)
    out = torch.empty(1, 60, 3, 4, device="meta").transpose(1, 2)  # token by token, as attention leaves it
    with recorded(), Copied() as seen:
        assert heads_to_tokens(parallel, [out], 3, 5, ordered=False).shape == shape
    assert seen.elements == one


class Copied(TorchDispatchMode):
    """Count the elements that are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.name().partition(".")[0] in {"aten::copy_", "aten::clone"}:
            self.elements += result.numel()
        return result


def received_from_leader(parallel: ContextParallel, conditioning: Conditioning) -> dict[str, object]:
    """A conditioning that only the leader has, as every rank gets it."""
    received = from_leader(parallel, lambda: conditioning if parallel.is_leader else None)
    return vars(received)


def test_from_leader_returns_the_leaders_value_on_every_rank(ranks):
    conditioning = Conditioning(
        start=torch.randn(1, 16, 2, 4, 4),
        clean=torch.randn(1, 16, 0, 4, 4),
        text=torch.randn(1, 5, 8).bfloat16(),
        mask=torch.ones(1, 5, dtype=torch.long),
        timesteps=torch.tensor([1000.0]),
        sigmas=torch.tensor([1.0, 0.0]),
        lora="cfg_step_lora",
        first_step=3,
    )
    for received in ranks.run(received_from_leader, 4, conditioning):
        for name, value in vars(conditioning).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(received[name], value)
                assert received[name].dtype == value.dtype
            else:
                assert received[name] == value


def failing_leader(parallel: ContextParallel) -> str:
    """What each rank is told when the leader fails."""

    def build() -> Conditioning:
        raise CheckpointError(Path("vae"), "is missing")

    try:
        from_leader(parallel, build)
    except CheckpointError as error:
        return str(error)
    return "nothing"


def test_model_error_of_the_leader_is_raised_on_every_rank(ranks):
    assert ranks.run(failing_leader, 3) == ["vae: is missing"] * 3


def exhausted_leader(parallel: ContextParallel) -> tuple[str, str]:
    """How each rank is told that the leader alone has no memory left, and what it gets after that."""

    def build() -> str:
        raise MemoryError("no room")

    try:
        from_leader(parallel, build)
    except (MemoryError, LeaderError) as error:
        told = f"{type(error).__name__}: {error}"
    return told, from_leader(parallel, lambda: "well again")


def test_other_error_of_the_leader_is_raised_elsewhere_as_leader_error(ranks):
    assert ranks.run(exhausted_leader, 3) == [
        ("MemoryError: no room", "well again"),
        ("LeaderError: MemoryError: no room", "well again"),
        ("LeaderError: MemoryError: no room", "well again"),
    ]


def test_heads_that_do_not_divide_among_ranks_are_refused():
    ContextParallel(size=2).check_heads(4)
    with pytest.raises(GroupError, match="3 ranks cannot share 4 attention heads"):
        ContextParallel(size=3).check_heads(4)


def test_join_without_torchrun_is_refused_for_several_ranks():
    with pytest.raises(GroupError, match="torchrun"):
        join("cpu", size=2, timeout_s=1.0)


def refused_to_divide(parallel: ContextParallel, size: int) -> str:
    """Why these ranks cannot be divided into groups of a size that share weights."""
    try:
        divide(CPU, size, shard_weights=True)
    except GroupError as error:
        return str(error)
    return "nothing"


def test_single_rank_that_shards_weights_is_refused(ranks):
    with pytest.raises(GroupError, match="at least two ranks"):
        join("cpu", size=None, timeout_s=1.0, shard_weights=True)
    assert (
        ranks.run(refused_to_divide, 4, 1)
        == ["weights can be sharded only if at least two ranks make a video together"] * 4
    )


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_forward_on_ranks_equals_forward_on_one_device(ranks, case, size):
    alone, published = velocity(case, SINGLE)
    for ours in ranks.run(rank_jobs.velocity, size, case):
        torch.testing.assert_close(ours, alone, rtol=0, atol=2e-5)
        torch.testing.assert_close(ours, published, rtol=0, atol=2e-5)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("case", "backend"),
    [("i2v", "aot_eager"), *(pytest.param(case, "inductor", marks=pytest.mark.soak) for case in CASES)],
)
def test_compiled_forward_on_ranks_equals_the_published_one(ranks, case, backend):
    """Traced as for the compiler among the integration tests; by its own kernels in all cases of `make soak`.

    Its kernels round differently on each kind of CPU: the largest error seen is 3.2e-5, of values up to 6.6.
    """
    for ours in ranks.run(rank_jobs.compiled_velocity, 2, case, backend):
        torch.testing.assert_close(ours, velocity(case, SINGLE)[1], rtol=0, atol=5e-5)


def has_conditioner(parallel: ContextParallel, checkpoint: Path) -> bool:
    return Pipeline.load(checkpoint, torch.float32, parallel).conditioner is not None


def test_only_the_leader_loads_the_text_encoder(ranks, tiny_checkpoint):
    assert ranks.run(has_conditioner, 3, tiny_checkpoint) == [True, False, False]


@pytest.mark.integration
@pytest.mark.parametrize("size", SIZES)
def test_long_refined_video_is_equal_on_any_number_of_ranks(ranks, size, tiny_checkpoint, tiny_pipeline):
    request = request_of(
        tiny_pipeline,
        "a cat",
        "a dog",
        num_frames=5,
        num_condition_frames=1,
        num_inference_steps=2,
        refine=True,
    )
    alone = single(tiny_pipeline, request)
    answers = ranks.run(rank_jobs.generate, size, tiny_checkpoint, request)
    for answer in answers:
        assert answer["kinds"] == alone["kinds"]
        for ours, theirs in zip(answer["latents"], alone["latents"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    leader, *others = answers
    assert (leader["frames"].int() - alone["frames"].int()).abs().max() <= 2
    assert all(other["frames"] is None for other in others)


def first_step(parallel: ContextParallel, checkpoint: Path, request: Request, resume: State) -> State:
    """The state after the first step of a job that resumes; followers are not given its state."""
    pipeline = Pipeline.load(checkpoint, torch.float32, parallel)
    events = pipeline.generate(request, resume if parallel.is_leader else None)
    return next(event.state for event in events if isinstance(event, Stepped))


def test_frames_of_a_saved_state_stay_with_the_leader(ranks, tiny_checkpoint, tiny_pipeline):
    request = request_of(
        tiny_pipeline, "a", "b", num_frames=5, num_condition_frames=1, num_inference_steps=1, distilled=True
    )
    saved = next(e.state for e in tiny_pipeline.generate(request) if isinstance(e, SegmentDone))
    leader, *others = ranks.run(first_step, 3, tiny_checkpoint, request, saved)
    assert saved.tail is not None
    assert torch.equal(leader.tail, saved.tail)
    for other in others:
        assert other.tail is None
        torch.testing.assert_close(other.latents, leader.latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_reuse_the_step_cache_in_the_same_steps_as_one(ranks, size, tiny_checkpoint, tiny_pipeline):
    """Two ranks split guidance between them, three do not."""
    params = GenerationParams(quality="balanced", num_frames=5, num_inference_steps=8)
    plan = resolve(params, Inputs(), tiny_pipeline.limits, step_cache=0.4)  # some steps are reused
    request = Request(plan, ("a cat",), seed=5)
    alone = single(tiny_pipeline, request)
    answers = ranks.run(rank_jobs.generate, size, tiny_checkpoint, request)
    for answer in answers:
        torch.testing.assert_close(answer["latents"], alone["latents"], rtol=0, atol=2e-4)
    assert [state.step for state in answers[0]["states"]] == [state.step for state in alone["states"]]


def halo_exchange(parallel: ContextParallel) -> tuple[float, float]:
    """Rows around this rank, whose first row is its number (from 1) and whose last is twice that."""
    first = torch.tensor([parallel.rank + 1.0])
    above, below = halo.halo_exchange(parallel, first, 2 * first)
    return float(above), float(below)


@pytest.mark.parametrize("size", SIZES)
def test_halo_exchange_returns_the_rows_of_the_neighbours(ranks, size):
    answers = ranks.run(halo_exchange, size)
    assert [above for above, _ in answers] == [0, *(2 * rank for rank in range(1, size))]
    assert [below for _, below in answers] == [*range(2, size + 1), 0]


def pictures(
    parallel: ContextParallel, checkpoint: Path, latents: torch.Tensor, frames: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip decoded, and another one encoded, by all ranks together."""
    vae = Vae.load(checkpoint, CPU, torch.float32, parallel)
    return torch.cat(list(vae.decode(latents))), vae.encode(frames, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "height"), [(2, 7), (3, 8), (4, 2)])
def test_vae_on_ranks_equals_vae_on_one_device(ranks, size, height, parity_checkpoint):
    """Two latent rows leave some ranks without any of their own."""
    latents, frames = torch.randn(1, 16, 6, height, 6), torch.rand(9, 8 * height, 48, 3)
    vae = Vae.load(parity_checkpoint, CPU, torch.float32)
    whole = torch.cat(list(vae.decode(latents)))
    encoded = vae.encode(frames, torch.Generator().manual_seed(0))
    for ours, theirs in ranks.run(pictures, size, parity_checkpoint, latents, frames):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs, encoded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("cached", [False, True])
def test_split_guidance_is_exact_and_sends_less(ranks, size, cached, parity_checkpoint):
    dit = load_dit(parity_checkpoint)
    conditioning = guided_conditioning(dit, cached=cached)
    *_, alone = denoise(dit, conditioning, SINGLE)
    split, together = (
        ranks.run(rank_jobs.guided, size, parity_checkpoint, conditioning, way) for way in (True, False)
    )
    for latents, _ in split + together:
        torch.testing.assert_close(latents, alone, rtol=0, atol=5e-5)
    if not cached:  # what the cache takes once is made by both halves
        assert all(
            few * (size - 1) == many * (size - 2) for (_, few), (_, many) in zip(split, together, strict=True)
        )


def guided_conditioning(dit, *, cached):
    timesteps, sigmas = standard(2, 12.0)
    return Conditioning(
        start=torch.randn(1, 16, 2, 4, 8),
        clean=torch.randn(1, 16, 1, 4, 8),
        text=torch.randn(2, 5, dit.config.caption_channels),
        mask=torch.ones(2, 5, dtype=torch.long),
        timesteps=timesteps,
        sigmas=sigmas,
        guidance_scale=4.0,
        cache_condition=cached,
    )


def single(pipeline, request):
    events = list(pipeline.generate(request))
    frames = [event.frames for event in events if isinstance(event, Frames) and event.frames is not None]
    return {
        "kinds": [type(event).__name__ for event in events],
        "latents": [event.latents for event in events if isinstance(event, Latents)],
        "states": [event.state for event in events if isinstance(event, Stepped)],
        "frames": torch.cat(frames),
    }


def least(parallel: ContextParallel, values: list[int]) -> int:
    return least_of_ranks(values[parallel.rank], parallel.device)


def test_all_ranks_know_the_least_value_of_any(ranks):
    assert ranks.run(least, 4, [80, 79, 24, 80]) == [24] * 4
