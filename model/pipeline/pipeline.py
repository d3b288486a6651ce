"""Generate a video from a request, on one device or several.

Each segment of a video has one stage of denoising and perhaps a second one of refinement. The leader prepares
the inputs and the conditioning of a stage, all ranks denoise and decode it together, and the leader yields
the frames.
"""

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from model.io.outgoing import PendingFrames, run_ahead, start_copy
from model.io.pixels import Pixels, to_floats, to_uint8
from model.parallel.broadcast import from_leader
from model.parallel.mesh import SINGLE, ContextParallel
from model.pipeline.conditioning import Conditioner
from model.pipeline.events import Encoded, Event, Frames, Latents, SegmentDone, Stepped
from model.pipeline.request import Request
from model.pipeline.sample import denoise
from model.pipeline.schedule import load_shift
from model.pipeline.state import State
from model.pipeline.text_cache import TextKVCache
from model.spec.errors import CheckpointError, InputError
from model.spec.geometry import LATENTS_AT_A_TIME, windows
from model.spec.limits import Limits, load_limits
from model.spec.memory import Quantize, TextEncoderPlacement
from model.spec.plan import DISTILLED_LORA, Plan, refine_layout_of
from model.text import TextEncoder
from model.transformer.dit import Dit
from model.transformer.loading import load_transformer
from model.transformer.lora import LoraMerger, WeightMemory
from model.transformer.step_cache import StepCache
from model.vae.vae import Vae
from model.weights.manifest import check_complete

Floats = Float[Tensor, "_ _ _ 3"]  # frames, height, width
EventStream = Generator[Event, None, State]  # returns the state after its last event


@dataclass(frozen=True)
class Pipeline:
    """A loaded checkpoint. All ranks have transformer and VAE, only the leader has the conditioner."""

    limits: Limits
    dit: Dit
    lora: LoraMerger
    vae: Vae
    conditioner: Conditioner | None
    parallel: ContextParallel
    text_cache: TextKVCache = field(default_factory=TextKVCache)

    @classmethod
    def load(  # noqa: PLR0913 - options by name
        cls,
        checkpoint: Path,
        dtype: torch.dtype,
        parallel: ContextParallel = SINGLE,
        *,
        quantize: Quantize = "none",
        text_encoder: TextEncoderPlacement = "device",
        stream_weights: bool = False,
        memory: WeightMemory | None = None,
        loras: Collection[str] | None = None,
    ) -> "Pipeline":
        """Load a checkpoint folder onto this rank's device.

        Args:
            checkpoint: the folder.
            dtype: the type of weights and activations.
            parallel: this rank and its group.
            quantize: how the large matrices of the transformer are stored.
            text_encoder: where the leader keeps the text encoder.
            stream_weights: whether the weights of the transformer's blocks stay in the memory of the host.
            memory: memory of the host for weights that its processes share.
            loras: the LoRAs that requests may need; None for all of the checkpoint.

        Raises:
            CheckpointError: a file is missing or wrong, or the weights are still being fetched; the message
                names file and tensor.
            GroupError: the attention heads do not divide evenly among the ranks.
            DeviceError: the device does not multiply matrices that are stored so, or cannot lock host memory.
        """
        if not checkpoint.is_dir():
            raise CheckpointError(checkpoint, "is missing, or is not a folder")
        check_complete(checkpoint)
        limits = load_limits(checkpoint)
        dit, lora = load_transformer(
            checkpoint,
            dtype,
            parallel,
            quantize=quantize,
            stream_weights=stream_weights,
            memory=memory,
            loras=loras,
        )
        vae = Vae.load(checkpoint, parallel.device, dtype, parallel)
        return cls(
            limits=limits,
            dit=dit,
            lora=lora,
            vae=vae,
            conditioner=_load_conditioner(checkpoint, limits, vae, dtype, text_encoder)
            if parallel.is_leader
            else None,
            parallel=parallel,
        )

    def on(self, parallel: ContextParallel) -> "Pipeline":
        """Return a pipeline with the same weights that makes videos with other ranks. Raises GroupError."""
        parallel.check_heads(self.dit.config.num_heads)
        return replace(self, vae=self.vae.on(parallel), parallel=parallel)

    def generate(self, request: Request, resume: State | None = None) -> Iterator[Event]:
        """Generate a video, or resume from a state. The caller may stop between any two events.

        All ranks call this together and get the same events in the same order. Only the leader reads the
        inputs and `resume`. Raises InputError if the checkpoint lacks a LoRA file that the plan needs.
        """
        self._check_loras(request.plan)
        self.text_cache.keep(set(request.plan.stage_loras))
        state = self._first_state(resume or State.begin(request.seed))
        while state.segment < request.plan.num_segments:
            state = yield from self._segment(request, state)
            yield SegmentDone(state.segment - 1, state)

    def _first_state(self, state: State) -> State:
        """Return the leader's state on every rank. Its frames stay with the leader."""
        shared = from_leader(self.parallel, lambda: replace(state, tail=None, refined_tail=None))
        if not self.parallel.is_leader:
            return shared
        return replace(shared, tail=state.tail, refined_tail=state.refined_tail)

    def _segment(self, request: Request, state: State) -> EventStream:
        """Generate one segment, and return the state in which the next begins."""
        if request.plan.task == "refine":
            state = self._begin_stage(request, replace(state, stage="refine"), request.video)
        elif state.stage == "denoise":
            state = yield from self._denoise(request, self._begin_stage(request, state))
            if request.plan.refinement is None:
                return (yield from self._decode(request, state))
            state = self._begin_refinement(request, state)
        state = yield from self._denoise(request, state)
        return (yield from self._decode(request, state))

    def _begin_stage(self, request: Request, state: State, clip: Pixels | None = None) -> State:
        """Return the state with the first latents of its stage, which refines `clip` (leader only)."""
        if state.latents is not None:
            return state
        inputs = from_leader(
            self.parallel, lambda: _present(self.conditioner).stage_inputs(request, state, clip)
        )
        latents, clean = inputs.encode(self.vae, self.parallel)
        return replace(state, latents=latents, clean=clean, random=inputs.random)

    def _begin_refinement(self, request: Request, state: State) -> State:
        """Begin the refinement of the base video of a segment."""
        clip = self._decode_whole(request, state)
        tail = None if clip is None else to_floats(_last(clip, request.plan.num_condition_frames)).clone()
        state = replace(state, stage="refine", step=0, latents=None, clean=None, tail=tail)
        return self._begin_stage(request, state, clip)

    def _denoise(self, request: Request, state: State) -> EventStream:
        """Run the remaining steps of a stage, and return the state with its final latents."""
        conditioning = from_leader(
            self.parallel, lambda: _present(self.conditioner).conditioning(request, state)
        )
        self.lora.switch(conditioning.lora)
        yield Encoded(state.stage, state.segment)
        threshold, full_step = conditioning.step_cache, state
        step_cache = None if threshold is None else StepCache(threshold, self.parallel)
        project_text = self.text_cache.for_lora(conditioning.lora)
        for x in denoise(self.dit, conditioning, self.parallel, step_cache, project_text):
            if step_cache is not None and not step_cache.reused:
                full_step = state  # this step depends on nothing before `state`, so a job can resume there
            state = replace(state, latents=x, step=state.step + 1)
            resume = state if step_cache is None else full_step
            yield Stepped(state.stage, state.segment, state.step, conditioning.num_steps, resume)
        yield Latents(state.stage, state.segment, _all_latents(state))
        return state

    def _decode(self, request: Request, state: State) -> EventStream:
        """Decode the last stage of a segment, and yield the frames that the segment before did not have."""
        plan = request.plan
        repeated = plan.repeated_frames if state.segment else 0
        kept = plan.repeated_frames if state.segment + 1 < plan.num_segments else 0
        first, count = 0, plan.num_frames
        if state.stage == "refine":
            layout = refine_layout_of(plan, state.segment)
            first, count = layout.front_padding, layout.num_frames
        new_windows = windows(first + repeated, count - repeated)
        kept_windows = windows(first + count - kept, kept)
        tail: list[Pixels] = []
        copies = run_ahead(self._copied_chunks(request, state, kept_windows), LATENTS_AT_A_TIME)
        for new, (copy, kept_copy) in zip(new_windows, copies, strict=True):
            if kept_copy is not None:
                tail.append(kept_copy.result().clone())  # out of pinned memory, see `_decode_whole`
            if new.start < new.stop:
                yield Frames(state.segment, None if copy is None else copy.result()[new])
        return self._next_segment(state, to_floats(torch.cat(tail)) if tail else None)

    def _next_segment(self, state: State, tail: Floats | None) -> State:
        """Return the state after a segment, given the last of its finished frames."""
        following = State(state.segment + 1, "denoise", 0, state.random)
        if state.stage == "refine":
            return replace(following, tail=state.tail, refined_tail=tail)
        return replace(following, tail=tail)

    def _decoded_chunks(self, state: State) -> Iterator[Floats | None]:
        """Yield the frames of a stage chunk by chunk, as all ranks decode them; None on other ranks."""
        for frames in self.vae.decode(_all_latents(state)):
            yield frames if self.parallel.is_leader else None

    def _copied_chunks(
        self, request: Request, state: State, kept_windows: Sequence[slice]
    ) -> Iterator[tuple[PendingFrames | None, PendingFrames | None]]:
        """Yield a copy of each chunk in 8 bits, and one of those of its frames that the next segment needs.

        The copies to the CPU are pending. Each chunk has a window, and the device has one chunk at a time.
        """
        for kept, chunk in zip(kept_windows, self._decoded_chunks(state), strict=False):
            if chunk is None:
                yield None, None
            elif kept.start == kept.stop:
                yield start_copy(to_uint8(chunk)), None
            else:
                kept_frames = _handed_over(chunk[kept], request).contiguous()
                yield start_copy(to_uint8(chunk)), start_copy(kept_frames)

    def _decode_whole(self, request: Request, state: State) -> Pixels | None:
        """Return all frames of a stage on the CPU of the leader; None on other ranks."""
        chunks = (chunk for chunk in self._decoded_chunks(state) if chunk is not None)
        copies = (start_copy(_handed_over(chunk, request).contiguous()) for chunk in chunks)
        # Cloned, so that no more than a few are in pinned memory, which is never given back.
        frames = [copy.result().clone() for copy in run_ahead(copies, LATENTS_AT_A_TIME)]
        return torch.cat(frames) if self.parallel.is_leader else None

    def _check_loras(self, plan: Plan) -> None:
        for name in plan.loras:
            if name not in self.lora.names:
                field = "distilled" if name == DISTILLED_LORA else "refine"
                raise InputError(field, f"this checkpoint has no lora/{name}.safetensors")


def _load_conditioner(
    checkpoint: Path, limits: Limits, vae: Vae, dtype: torch.dtype, placement: TextEncoderPlacement
) -> Conditioner:
    return Conditioner(
        text=TextEncoder.load(checkpoint, vae.device, dtype, placement, kept=limits.negative_prompt),
        latent_channels=vae.latent_channels,
        shift=load_shift(checkpoint / "scheduler" / "scheduler_config.json"),
        negative_prompt=limits.negative_prompt,
    )


def _present(conditioner: Conditioner | None) -> Conditioner:
    assert conditioner
    return conditioner


def _all_latents(state: State) -> Float[Tensor, "1 z f h w"]:
    """Return the latents of all frames of a stage, condition frames first."""
    latents, clean = state.stage_latents()
    return torch.cat([clean, latents], dim=2)


def _handed_over(frames: Floats, request: Request) -> Pixels:
    """Return frames as the next stage or segment gets them: perhaps in 8 bits."""
    return to_uint8(frames) if request.exact_handover else frames


def _last(frames: Pixels, count: int) -> Pixels:
    """Return the last `count` frames, or all if there are fewer."""
    return frames[max(len(frames) - count, 0) :]
