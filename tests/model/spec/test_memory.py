"""Predicted memory follows ranks, dtype and plan.

`tests/benchmarks` compares it with the peaks of the real modules (`test_peak_memory.py`) and of whole jobs
(`test_promises.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from model.spec.geometry import Clip, Size
from model.spec.limits import Limits
from model.spec.memory import (
    RESERVE_BYTES,
    SMALL_LATENTS,
    CheckpointSizes,
    HostNeed,
    MemoryBudget,
    Quantize,
    Setup,
    choose_text_encoder,
    decode_bytes,
    encode_bytes,
    encode_text_bytes,
    forward_bytes,
    host_needed,
    memory_needed,
    weight_bytes,
)
from model.spec.params import GenerationParams
from model.spec.plan import DISTILLED_LORA, REFINEMENT_LORA
from model.spec.resolve import Inputs, resolve
from model.spec.stages import StageShape, refinement_shape
from model.spec.typical import typical_plans

RELEASED = CheckpointSizes(
    transformer=13_581_071_424,
    quantised=10_852_761_600,
    float32=610_018_368,
    text_encoder=5_680_910_336,
    vae=126_892_531,
    width=4096,
    depth=48,
    blocks=13_542_383_616,
)
LIMITS = Limits.from_json({})
QUANTIZE = get_args(Quantize)


def needed(setup: Setup | None = None, *, is_leader: bool = True, **options):
    plan = resolve(GenerationParams(**options), Inputs(), LIMITS)
    return memory_needed(RELEASED, plan, setup or Setup(), is_leader=is_leader)


def test_only_the_leader_has_the_text_encoder():
    leader, other = needed(), needed(is_leader=False)
    assert (leader.text_encoder, other.text_encoder) == (2 * RELEASED.text_encoder, 0)
    assert leader.total - other.total == leader.text_encoder


def test_text_encoder_that_is_offloaded_costs_nothing_where_a_later_phase_needs_more():
    setup = Setup(text_encoder="offload")
    assert needed(setup) == needed(setup, is_leader=False)
    assert needed().total - needed(setup).total == 2 * RELEASED.text_encoder


def test_text_encoder_that_is_offloaded_counts_where_encoding_needs_most():
    setup = Setup(ranks=8, text_encoder="offload")
    small = needed(setup, height=64, width=64, num_frames=1)
    assert (small.phase, small.text_encoder) == ("encode_text", 0)
    assert small.working == encode_text_bytes(RELEASED, setup) < 2 * RELEASED.text_encoder / 10


def test_text_encoder_on_the_cpu_takes_nothing():
    setup = Setup(ranks=8, text_encoder="cpu")
    small = needed(setup, height=64, width=64, num_frames=1)
    assert (small.phase, small.text_encoder) == ("decode", 0)
    assert weight_bytes(RELEASED, setup) == weight_bytes(RELEASED, setup, is_leader=False)


def test_ranks_share_the_work_but_not_the_weights():
    assert needed(Setup(1)).weights == needed(Setup(4)).weights
    one, four = (forward_bytes(RELEASED, StageShape(24, 480, 832), Setup(ranks)) for ranks in (1, 4))
    assert four == pytest.approx(one / 4, rel=0.01)


def test_vae_takes_longer_pieces_of_the_shards_of_several_ranks():
    stage = StageShape(24, 480, 832)
    one, four = (decode_bytes(RELEASED, stage, Setup(ranks)) for ranks in (1, 4))
    assert one / 4 < four < one / 2


def test_ranks_that_do_not_divide_the_rows_need_memory_for_padding():
    of_60_rows, of_64_rows = (
        encode_bytes(RELEASED, StageShape(24, height, 832), Setup(ranks=8)) for height in (480, 512)
    )
    assert of_60_rows == of_64_rows


def test_small_tensors_grow_with_the_latents_and_ranks_do_not_divide_them():
    short, long = (needed(num_frames=num_frames).small for num_frames in (1, 93))
    assert long - short == SMALL_LATENTS * 23 * 60 * 104 * 16 * 4
    assert needed(Setup(8)).small == long
    assert needed().total - replace(needed(), small=0).total == long


@pytest.mark.parametrize("quantize", ["fp8", "int8"])
def test_quantising_halves_the_large_matrices(quantize):
    exact, quantised = needed(), needed(Setup(quantize=quantize))
    assert exact.transformer - quantised.transformer == RELEASED.quantised
    assert weight_bytes(RELEASED, Setup(quantize=quantize)) == quantised.weights


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_ranks_that_shard_weights_hold_their_part_of_the_blocks_and_two_whole_ones(quantize):
    whole, shards = (needed(Setup(4, quantize=quantize, shard_weights=sharded)) for sharded in (False, True))
    outside = 2 * (RELEASED.transformer - RELEASED.blocks)
    one_block = (2 * RELEASED.blocks + 2 * RELEASED.float32) / RELEASED.depth
    expected = outside + (whole.transformer - outside) / 4 + 2 * one_block
    assert shards.transformer == pytest.approx(expected, abs=2)
    assert whole.total - shards.total == whole.transformer - shards.transformer


def test_guidance_doubles_the_forward_and_the_keys_of_the_text():
    guided, plain = needed(guidance_scale=4.0), needed(guidance_scale=1.0)
    assert guided.text_kv == 2 * plain.text_kv
    one, two = (StageShape(24, 480, 832, num_texts=number) for number in (1, 2))
    assert forward_bytes(RELEASED, two, Setup()) == 2 * forward_bytes(RELEASED, one, Setup())


def test_step_cache_adds_two_tensors_of_all_tokens_at_each_dtype():
    for element_bytes in (2, 4):
        exact, balanced = (
            forward_bytes(RELEASED, StageShape(24, 480, 832, step_cache=cached), Setup(4, element_bytes))
            for cached in (False, True)
        )
        assert balanced - exact == pytest.approx(2 * 24 * 30 * 52 * 4096 * element_bytes / 4, abs=2)


def test_refinement_needs_more_than_the_base_video():
    assert needed(refine=True).working > needed().working


@pytest.mark.parametrize(
    ("image", "num_condition_frames", "latents"),
    [(None, 1, (48, 52)), (Size(480, 832), 13, (52, 48))],
)
def test_refinement_counts_in_the_segment_where_it_is_longer(image, num_condition_frames, latents):
    options = {"num_segments": 2, "refine": True, "num_condition_frames": num_condition_frames}
    plan = resolve(GenerationParams.model_validate(options), Inputs(image=image), LIMITS)
    shapes = [refinement_shape(plan, segment) for segment in (0, 1)]
    assert tuple(shape.num_frames for shape in shapes) == latents
    setup = Setup()
    peaks = [forward_bytes(RELEASED, shape, setup) for shape in shapes]
    need = memory_needed(RELEASED, plan, setup, is_leader=False)
    assert (need.phase, need.working) == ("denoise", max(peaks))


def test_refinement_takes_no_memory_for_the_frames_of_its_clip():
    plan = resolve(GenerationParams(task="refine"), Inputs(video=Clip(480, 832, 93)), LIMITS)
    setup, refined = Setup(ranks=8), StageShape(48, 704, 1280)
    phases = (forward_bytes(RELEASED, refined, setup), decode_bytes(RELEASED, refined, setup))
    assert memory_needed(RELEASED, plan, setup, is_leader=False).working == max(phases)


def test_condition_cache_holds_keys_of_the_condition_frames_instead_of_computing_them_again():
    plan = resolve(GenerationParams(num_segments=2), Inputs(num_prompts=1), LIMITS)
    with_cache = memory_needed(RELEASED, plan.model_copy(update={"condition_cache": True}), Setup())
    without = memory_needed(RELEASED, plan.model_copy(update={"condition_cache": False}), Setup())
    assert (with_cache.condition_kv > 0, without.condition_kv) == (True, 0)


def test_condition_cache_counts_in_the_stage_that_has_it():
    """The refinement of a continuation computes its condition frames at every step."""
    long, single = (needed(num_segments=number, refine=True) for number in (2, 1))
    assert (long.phase, long.condition_kv) == ("denoise", 0)
    plan = resolve(GenerationParams(num_segments=2, refine=True), Inputs(), LIMITS)
    refined = [forward_bytes(RELEASED, refinement_shape(plan, segment), Setup()) for segment in (0, 1)]
    assert (single.working, long.working) == (refined[0], max(refined))


def test_condition_cache_counts_where_it_needs_more_than_the_refinement():
    setup = Setup(ranks=2)
    base, refined = (needed(setup, num_segments=2, refine=refine) for refine in (False, True))
    assert base.condition_kv > 0
    assert (refined.condition_kv, refined.working) == (base.condition_kv, base.working)


def test_first_segment_of_a_shallow_transformer_needs_more_than_later_ones_with_a_condition_cache():
    shallow = replace(RELEASED, depth=4)
    first, later = (resolve(GenerationParams(num_segments=segments), Inputs(), LIMITS) for segments in (1, 2))
    assert memory_needed(shallow, later, Setup()) == memory_needed(shallow, first, Setup())
    assert memory_needed(RELEASED, later, Setup()).total > memory_needed(RELEASED, first, Setup()).total


def test_guidance_that_is_split_halves_the_keys_of_texts_and_keeps_those_of_condition_frames_on_fewer_ranks():
    plan = resolve(GenerationParams(num_segments=2), Inputs(num_prompts=1), LIMITS)
    alone, two, four = (memory_needed(RELEASED, plan, Setup(ranks)) for ranks in (1, 2, 4))
    assert (two.text_kv, four.text_kv) == (alone.text_kv // 2, alone.text_kv // 2)
    assert (two.condition_kv, four.condition_kv) == (alone.condition_kv, alone.condition_kv // 2)


class TestChoice:
    """`auto` leaves the encoder on the device if all typical videos fit with it."""

    PLANS = dict(typical_plans(LIMITS, (DISTILLED_LORA, REFINEMENT_LORA))).values()

    def chosen(self, available: int | None, setup: Setup | None = None, wanted="auto"):
        return choose_text_encoder(wanted, RELEASED, setup or Setup(), self.PLANS, available)

    @pytest.mark.parametrize(
        ("gpu_gib", "ranks", "quantize", "placement"),
        [
            (24, 1, "none", "offload"),
            (24, 1, "fp8", "offload"),
            (24, 2, "fp8", "offload"),
            (40, 1, "none", "offload"),
            (40, 1, "fp8", "offload"),
            (48, 1, "none", "offload"),
            (48, 2, "none", "offload"),
            (48, 4, "none", "device"),
            (48, 1, "fp8", "device"),
            (80, 1, "none", "device"),
            (141, 1, "none", "device"),
        ],
    )
    def test_gpu_decides(self, gpu_gib, ranks, quantize, placement):
        assert self.chosen((gpu_gib << 30) - RESERVE_BYTES, Setup(ranks, quantize=quantize)) == placement

    def test_encoder_stays_on_the_device_where_memory_is_not_limited(self):
        assert self.chosen(None) == "device"

    @pytest.mark.parametrize("wanted", ["device", "offload", "cpu"])
    def test_what_is_asked_for_is_chosen(self, wanted):
        assert self.chosen(1, wanted=wanted) == wanted

    def test_one_byte_too_little_for_the_largest_video_offloads_the_encoder(self):
        largest = max(memory_needed(RELEASED, plan, Setup()).total for plan in self.PLANS)
        assert (self.chosen(largest), self.chosen(largest - 1)) == ("device", "offload")


class TestBudget:
    PLAN = resolve(GenerationParams(), Inputs(), LIMITS)
    NEEDED = memory_needed(RELEASED, PLAN, Setup()).total

    def test_plan_fits_into_exactly_what_it_needs(self):
        assert MemoryBudget(self.NEEDED, RELEASED).fits(self.PLAN)
        assert not MemoryBudget(self.NEEDED - 1, RELEASED).fits(self.PLAN)

    def test_longest_length_that_fits_is_the_longest(self):
        budget = MemoryBudget(self.NEEDED - (1 << 30), RELEASED)
        longest = budget.longest_that_fits(self.PLAN)
        assert longest is not None
        assert (longest - 1) % 4 == 0
        fits = [budget.fits(self.PLAN.model_copy(update={"num_frames": longest + n})) for n in (0, 4)]
        assert fits == [True, False]

    def test_plan_with_a_step_cache_does_not_fit_into_what_the_exact_one_needs(self):
        balanced = resolve(GenerationParams(quality="balanced"), Inputs(), LIMITS, step_cache=0.1)
        assert MemoryBudget(self.NEEDED, RELEASED).fits(self.PLAN)
        assert not MemoryBudget(self.NEEDED, RELEASED).fits(balanced)
        assert MemoryBudget(memory_needed(RELEASED, balanced, Setup()).total, RELEASED).fits(balanced)

    def test_nothing_fits_without_room_for_the_weights(self):
        assert MemoryBudget(RELEASED.transformer, RELEASED).longest_that_fits(self.PLAN) is None

    def test_equal_budgets_have_one_name(self):
        budgets = [MemoryBudget(size, RELEASED, setup) for size in (1, 2) for setup in (Setup(1), Setup(2))]
        assert len({budget.digest for budget in [*budgets, *budgets]}) == 4


def test_merged_weights_may_take_half_of_the_memory_that_other_weights_leave():
    assert [HostNeed(others, 0).shared_limit(100, None) for others in (0, 60, 100, 200)] == [50, 20, 0, 0]


@pytest.mark.parametrize(("gib", "expected"), [(0, 0), (1.5, 3 << 29)])
def test_limit_of_the_operator_on_merged_weights_holds_whatever_others_take(gib, expected):
    assert HostNeed(200, 0).shared_limit(100, gib) == expected


@pytest.mark.parametrize(
    ("memory_bytes", "gib", "expected"), [(100, None, 80 + 5), (60, None, 80), (100, 0, 80)]
)
def test_shared_weights_may_take_as_much_as_the_copies_that_they_replace_and_then_some(
    memory_bytes, gib, expected
):
    assert HostNeed(text_encoders=10, block_copies=80).shared_limit(memory_bytes, gib) == expected


def test_host_holds_the_text_encoders_of_leaders_and_a_copy_of_streamed_blocks_for_each_rank():
    setup = Setup(ranks=2, stream_weights=True, text_encoder="offload")
    need = host_needed(RELEASED, setup, num_ranks=4, num_leaders=2)
    assert need.text_encoders == 2 * 2 * RELEASED.text_encoder
    assert need.block_copies == 4 * host_needed(RELEASED, setup, num_ranks=1, num_leaders=0).total
    on_device = replace(setup, stream_weights=False, text_encoder="device")
    assert host_needed(RELEASED, on_device, num_ranks=4, num_leaders=2).total == 0
