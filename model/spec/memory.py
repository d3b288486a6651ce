"""Predict the GPU memory that a plan needs, from sizes alone.

`memory_needed` adds what stays on the GPU during the whole job (weights, keys and values of the texts, small
tensors) to the peak of the phase that needs most: encoding the texts or frames, denoising, or decoding.

The constants come from `python -m benchmarks.peak_memory`, which runs the real modules on the meta device; a
test keeps both within 5 % of each other. `python -m benchmarks.promises` runs whole jobs: they must not need
more than is predicted. What a GPU itself takes (its context, workspaces, unusable gaps) is not predicted:
`RESERVE_BYTES` allows for it. Nor are the peaks of loading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Literal

from model.spec.geometry import (
    FRAME_STRIDE,
    VAE_STRIDE,
    latent_frames,
    latents_at_a_time,
)
from model.spec.plan import Plan
from model.spec.stages import StageShape, refinement_shapes, shapes_of_stages

GIB = 1024**3

RESERVE_BYTES = 2 * GIB
"""Memory of each GPU that is left to its context, workspaces and gaps. Not measured."""

FORWARD_TENSORS = {2: 11.1, 4: 10.4}
"""Tensors [tokens, width] that are alive at the peak of a block, by the size of an element in bytes."""

INT8_PEAKS = {2: ((7.7, 6), (10.4, 2)), 4: ((10.4, 4),)}
"""Further peaks of a block with weights in int8, by the size of an element in bytes: tensors [tokens, width],
and bytes for each element of a matrix of the feed-forward, of which a copy is made for the product."""

STEP_CACHE_TENSORS = 2
"""Tensors [tokens, width] that the step cache adds to those of a block."""

FEED_FORWARD_RATIO = 8 / 3
"""Hidden channels of the feed-forward, as a multiple of the width."""

ENCODED_ELEMENTS, ENCODED_ELEMENTS_OF_FRAME = 1810, 298
"""Elements for each pixel of a frame at the peak of encoding, with `WAN_CHANNELS` channels: a constant, and
as much for each frame that is encoded at a time."""

DECODED_ELEMENTS, DECODED_ELEMENTS_OF_FRAME = 2378, 435
"""The same of decoding, without the frames of earlier chunks."""

FRAME_BYTES = 3 * 4
"""Bytes of a pixel of a decoded frame, which is in fp32."""

HALO_ROWS = 2
"""Rows that a convolution needs above and below those of a rank."""

WAN_CHANNELS = 96
"""Channels of the released VAE at the full size of a frame."""

TEXT_TOKENS = 512
"""Tokens of a prompt, with padding."""

ENCODED_TEXT = {"device": {2: 0.023, 4: 0.0147}, "offload": {2: 0.057, 4: 0.0486}, "cpu": {2: 0.0, 4: 0.0}}
"""What the GPU holds at the peak of encoding a prompt, besides a text encoder that stays there, as a share of
the encoder's weights: by its placement, and by the size of an element in bytes."""

SMALL_BYTES, SMALL_LATENTS = 50_000_000, 7
"""Small tensors that are alive at the peak of any phase, such as hidden states of prompts and positions of
tokens: bytes, and copies of the latents of the largest stage in fp32, which ranks do not divide."""

LATENT_CHANNELS = 16
"""Channels of the released VAE's latents."""

Phase = Literal["encode_text", "encode", "denoise", "decode"]

Quantize = Literal["none", "fp8", "int8"]
"""How the large matrices of the transformer are stored.

`none`: in the dtype of the model. `fp8`: in one byte for each element, in which they are also multiplied.
`int8`: in one byte for each element, and multiplied in the dtype of the model.
"""

TextEncoderPlacement = Literal["device", "offload", "cpu"]
"""Where the leader keeps the text encoder, and where it runs.

`device`: on the GPU. `offload`: in host memory; the GPU encodes, and has one layer at a time. `cpu`: in host
memory, where it also runs. The first two give the same bits, the third differs by rounding.
"""
TextEncoderOption = Literal["auto", "device", "offload", "cpu"]
"""A placement, or `auto` for the one that suits the memory (`choose_text_encoder`)."""


@dataclass(frozen=True)
class CheckpointSizes:
    """Sizes of a checkpoint, in parameters unless said otherwise.

    Attributes:
        transformer: all of the transformer.
        quantised: those of its matrices that can be quantised: stored in one byte for each element.
        text_encoder: all of the text encoder, which only the leader of a group has.
        vae: all of the VAE.
        width: channels of a token.
        depth: blocks of the transformer.
        vae_channels: channels of the VAE at the full size of a frame.
        float32: those of the transformer that stay in fp32 whatever the dtype.
        blocks: all blocks of the transformer.
    """

    transformer: int
    quantised: int
    text_encoder: int
    vae: int
    width: int
    depth: int
    vae_channels: int = WAN_CHANNELS
    float32: int = 0
    blocks: int = 0


@dataclass(frozen=True)
class Setup:
    """Describe how a group runs a checkpoint.

    Attributes:
        ranks: ranks that share a video.
        element_bytes: bytes of an element of weights and activations.
        quantize: how the large matrices of the transformer are stored.
        text_encoder: where the leader keeps the text encoder.
        shard_weights: whether the ranks share the weights of the blocks.
        stream_weights: whether the weights of the blocks are in the memory of the host.
    """

    ranks: int = 1
    element_bytes: int = 2
    quantize: Quantize = "none"
    text_encoder: TextEncoderPlacement = "device"
    shard_weights: bool = False
    stream_weights: bool = False


@dataclass(frozen=True)
class MemoryNeed:
    """Break down the memory of one GPU at the peak of a job, in bytes.

    Attributes:
        transformer, text_encoder, vae: weights that stay on the GPU.
        text_kv: keys and values of the texts in all blocks, of each stage.
        condition_kv: those of cached condition frames, in the stage that needs most if `phase` is `denoise`.
        small: latents and other small tensors.
        working: what is alive besides at the peak of the phase that needs most.
        phase: that phase.
    """

    transformer: int
    text_encoder: int
    vae: int
    text_kv: int
    condition_kv: int
    small: int
    working: int
    phase: Phase

    @property
    def weights(self) -> int:
        """Return what is taken as long as the model is loaded."""
        return self.transformer + self.text_encoder + self.vae

    @property
    def total(self) -> int:
        """Return the sum, without `RESERVE_BYTES`."""
        return self.weights + self.text_kv + self.condition_kv + self.small + self.working


@dataclass(frozen=True)
class HostNeed:
    """Break down the weights that the ranks of a machine keep in its memory if they share none, in bytes.

    Attributes:
        text_encoders: those of the leaders.
        block_copies: streamed blocks, a copy for each rank.
    """

    text_encoders: int
    block_copies: int

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.text_encoders + self.block_copies

    def shared_limit(self, memory_bytes: int, limit_gib: float | None) -> int:
        """Return the memory that weights which all ranks share may take: merged ones, and streamed blocks.

        They replace the copies of streamed blocks, so they may take the memory of these and a limit more.

        Args:
            memory_bytes: memory of the machine.
            limit_gib: the limit of what they may take beyond that; None for half of what other weights leave.
        """
        besides = max(0, memory_bytes - self.total) // 2 if limit_gib is None else round(limit_gib * GIB)
        return self.block_copies + besides


@dataclass(frozen=True)
class MemoryBudget:
    """The memory of a group's GPUs, and what decides how much of it a plan needs.

    Attributes:
        available_bytes: memory of each GPU that weights and tensors may take.
        sizes: those of the checkpoint.
        setup: how the group runs it.
    """

    available_bytes: int
    sizes: CheckpointSizes
    setup: Setup = Setup()

    @cached_property
    def digest(self) -> str:
        """Return a name that equal budgets share."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def with_ranks(self, ranks: int) -> MemoryBudget:
        """Return the budget of so many of the ranks together."""
        return replace(self, setup=replace(self.setup, ranks=ranks))

    def needed(self, plan: Plan) -> int:
        """Return the memory that a plan needs on the leader, which needs the most."""
        return memory_needed(self.sizes, plan, self.setup).total

    def fits(self, plan: Plan) -> bool:
        """Return whether a plan is expected to fit."""
        return self.needed(plan) <= self.available_bytes

    def longest_that_fits(self, plan: Plan) -> int | None:
        """Return the number of frames of a segment with which a plan fits, None if none does."""
        for num_frames in range(plan.num_frames - FRAME_STRIDE, plan.num_condition_frames, -FRAME_STRIDE):
            if self.fits(plan.model_copy(update={"num_frames": num_frames})):
                return num_frames
        return None


def choose_text_encoder(
    wanted: TextEncoderOption,
    sizes: CheckpointSizes,
    setup: Setup,
    plans: Iterable[Plan],
    available: int | None,
) -> TextEncoderPlacement:
    """Return the wanted placement or, for `auto`, the device if all plans fit with it, else `offload`.

    Args:
        wanted: a placement, or `auto`.
        sizes: those of the checkpoint.
        setup: how the group runs it; its own placement does not count.
        plans: the plans that should fit.
        available: memory of each GPU that weights and tensors may take; None if it is not limited.
    """
    if wanted != "auto":
        return wanted
    if available is None:
        return "device"
    on_device = MemoryBudget(available, sizes, replace(setup, text_encoder="device"))
    return "device" if all(on_device.fits(plan) for plan in plans) else "offload"


def available_bytes(gpu_bytes: int | None, limit_gib: float | None) -> int | None:
    """Return the memory of each GPU that the model may take, None if it is not limited.

    Memory of a GPU counts in whole GiB, rounded down.

    Args:
        gpu_bytes: memory of each GPU; None without GPUs, or if it is not known.
        limit_gib: the operator's limit; None for all but `RESERVE_BYTES`.
    """
    if limit_gib is not None:
        return round(limit_gib * GIB)
    return None if gpu_bytes is None else gpu_bytes // GIB * GIB - RESERVE_BYTES


def format_bytes(num_bytes: int) -> str:
    """Return a number of bytes as people read it, in GiB or MiB."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 1024**2:.0f} MiB"


def memory_needed(sizes: CheckpointSizes, plan: Plan, setup: Setup, *, is_leader: bool = True) -> MemoryNeed:
    """Return the memory that a plan needs on the leader of a group, or on another of its ranks."""
    stages = shapes_of_stages(plan)
    shapes = list(chain.from_iterable(stages))
    condition_kv, forward = max(
        ((_condition_kv_bytes(sizes, shape, setup), forward_bytes(sizes, shape, setup)) for shape in shapes),
        key=sum,
    )
    needs: dict[Phase, int] = {
        "denoise": condition_kv + forward,
        "decode": max(decode_bytes(sizes, shape, setup) for shape in shapes),
        "encode": _encode_bytes_of(sizes, plan, setup),
        "encode_text": encode_text_bytes(sizes, setup) if is_leader else 0,
    }
    phase = max(needs, key=lambda each: needs[each])
    if phase != "denoise":
        condition_kv = 0
    return MemoryNeed(
        transformer=transformer_bytes(sizes, setup),
        text_encoder=_resident_text_encoder_bytes(sizes, setup, is_leader=is_leader),
        vae=sizes.vae * setup.element_bytes,
        text_kv=sum(_text_kv_bytes(sizes, shapes[0], setup) for shapes in stages),
        condition_kv=condition_kv,
        small=max(small_bytes(shape) for shape in shapes),
        working=needs[phase] - condition_kv,
        phase=phase,
    )


def _encode_bytes_of(sizes: CheckpointSizes, plan: Plan, setup: Setup) -> int:
    """Return the largest peak of the encodings of a plan."""
    needs = [0]
    if plan.task in {"image_to_video", "video_continuation"} or plan.num_segments > 1:
        frames = latent_frames(max(1, plan.num_condition_frames))
        needs.append(encode_bytes(sizes, StageShape(frames, plan.height, plan.width), setup))
    needs += (encode_bytes(sizes, shape, setup) for shape in refinement_shapes(plan))
    return max(needs)


def _text_kv_bytes(sizes: CheckpointSizes, stage: StageShape, setup: Setup) -> int:
    """Return the bytes of keys and values of the texts of a stage in all blocks."""
    return _local_texts(stage, setup) * TEXT_TOKENS * _token_kv_bytes(sizes, setup)


def _condition_kv_bytes(sizes: CheckpointSizes, stage: StageShape, setup: Setup) -> int:
    """Return the bytes of cached keys and values of condition frames in all blocks."""
    return stage.cached_tokens // _ranks_of_a_text(stage, setup) * _token_kv_bytes(sizes, setup)


def _token_kv_bytes(sizes: CheckpointSizes, setup: Setup) -> int:
    return 2 * sizes.depth * sizes.width * setup.element_bytes


def _local_texts(stage: StageShape, setup: Setup) -> int:
    """Return for how many texts a rank predicts: an even number of ranks splits guidance into two halves."""
    return 1 if setup.ranks % 2 == 0 else stage.num_texts


def _ranks_of_a_text(stage: StageShape, setup: Setup) -> int:
    """Return how many ranks predict for the same text, and divide the keys of the condition frames."""
    return setup.ranks * _local_texts(stage, setup) // stage.num_texts


def weight_bytes(sizes: CheckpointSizes, setup: Setup, *, is_leader: bool = True) -> int:
    """Return the memory of the weights that stay on one GPU."""
    text_encoder = _resident_text_encoder_bytes(sizes, setup, is_leader=is_leader)
    return transformer_bytes(sizes, setup) + text_encoder + sizes.vae * setup.element_bytes


def _resident_text_encoder_bytes(sizes: CheckpointSizes, setup: Setup, *, is_leader: bool) -> int:
    return sizes.text_encoder * setup.element_bytes if is_leader and setup.text_encoder == "device" else 0


def transformer_bytes(sizes: CheckpointSizes, setup: Setup) -> int:
    """Return the bytes of the transformer's weights on each rank.

    Of blocks that are sharded or streamed, a rank has two whole ones, one that computes and one that is
    fetched, and of sharded ones its part of all.
    """
    outside = (sizes.transformer - sizes.blocks) * setup.element_bytes
    if not (setup.shard_weights or setup.stream_weights):
        return outside + _block_bytes(sizes, setup)
    largest_block = (  # one that is not quantised
        (sizes.blocks - sizes.float32) * setup.element_bytes + 4 * sizes.float32
    ) // sizes.depth
    kept = _block_bytes(sizes, setup) // setup.ranks if setup.shard_weights else 0
    return outside + kept + 2 * largest_block


def _block_bytes(sizes: CheckpointSizes, setup: Setup) -> int:
    """Return the bytes of all blocks. Nearly all weights that stay in fp32 are in them."""
    quantised = 0 if setup.quantize == "none" else sizes.quantised
    others = sizes.blocks - quantised - sizes.float32
    return others * setup.element_bytes + quantised + 4 * sizes.float32


def host_needed(sizes: CheckpointSizes, setup: Setup, num_ranks: int, num_leaders: int) -> HostNeed:
    """Return what so many ranks keep in the memory of their machine, of which some are leaders of a group."""
    num_encoders = 0 if setup.text_encoder == "device" else num_leaders
    num_copies = num_ranks if setup.stream_weights else 0
    return HostNeed(
        text_encoders=num_encoders * sizes.text_encoder * setup.element_bytes,
        block_copies=num_copies * _block_bytes(sizes, setup),
    )


def forward_bytes(sizes: CheckpointSizes, stage: StageShape, setup: Setup) -> int:
    """Return the peak of a forward on one rank, without weights and without keys and values of text."""
    tokens = stage.num_frames * stage.tokens_of_frame - stage.cached_tokens
    elements = stage.num_texts * tokens * sizes.width / setup.ranks
    tensor_bytes, matrix = elements * setup.element_bytes, FEED_FORWARD_RATIO * sizes.width**2
    peaks = [FORWARD_TENSORS[setup.element_bytes] * tensor_bytes]
    if setup.quantize == "int8":
        copied = INT8_PEAKS[setup.element_bytes]
        peaks += [tensors * tensor_bytes + copy_bytes * matrix for tensors, copy_bytes in copied]
    cached = STEP_CACHE_TENSORS * tensor_bytes if stage.step_cache else 0
    return round(max(peaks) + cached)


def encode_text_bytes(sizes: CheckpointSizes, setup: Setup) -> int:
    """Return the peak of encoding a prompt on the leader, with the layer that is moved there for it."""
    share = ENCODED_TEXT[setup.text_encoder][setup.element_bytes]
    return round(share * sizes.text_encoder * setup.element_bytes)


def encode_bytes(sizes: CheckpointSizes, stage: StageShape, setup: Setup) -> int:
    """Return the peak of encoding frames of this size, of which a GPU has only those that it encodes."""
    frames = _frames_at_a_time(sizes, stage, setup)
    return round((ENCODED_ELEMENTS + ENCODED_ELEMENTS_OF_FRAME * frames) * _vae_scale(sizes, stage, setup))


def decode_bytes(sizes: CheckpointSizes, stage: StageShape, setup: Setup) -> int:
    """Return the peak of decoding frames of this size, with the whole frames that a rank still has."""
    frames = _frames_at_a_time(sizes, stage, setup)
    decoded = (DECODED_ELEMENTS + DECODED_ELEMENTS_OF_FRAME * frames) * _vae_scale(sizes, stage, setup)
    return round(decoded + frames * stage.height * stage.width * FRAME_BYTES)


def small_bytes(stage: StageShape) -> int:
    """Return the memory of what is small beside the peak of any phase."""
    latents = LATENT_CHANNELS * stage.num_frames * (stage.height * stage.width // VAE_STRIDE**2)
    return SMALL_BYTES + SMALL_LATENTS * 4 * latents


def _frames_at_a_time(sizes: CheckpointSizes, stage: StageShape, setup: Setup) -> int:
    """Return how many frames the VAE encodes or decodes at a time."""
    count = latents_at_a_time(2 * sizes.vae_channels, _latent_rows(stage, setup), stage.width // VAE_STRIDE)
    return FRAME_STRIDE * min(count, stage.num_frames)


def _latent_rows(stage: StageShape, setup: Setup) -> int:
    """Return the latent rows of a frame that a rank has, some of which may be padding."""
    return -(-(stage.height // VAE_STRIDE) // setup.ranks)


def _vae_scale(sizes: CheckpointSizes, stage: StageShape, setup: Setup) -> float:
    """Return the bytes of an element for each pixel of a rank, with the rows of its neighbours."""
    pixels = (VAE_STRIDE * _latent_rows(stage, setup) + HALO_ROWS) * stage.width
    return pixels * setup.element_bytes * sizes.vae_channels / WAN_CHANNELS
