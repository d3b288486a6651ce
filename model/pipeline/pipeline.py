"""A job from request to frames, on one device or many: begin to read here.

The command line and a worker's rank call `Pipeline.load` once and `Pipeline.generate` for each job; every
rank of a group does the same in step with the others. Each segment of a video is a stage of denoising
(`model.sample`), perhaps a second one of refinement, each with a beginning and a conditioning that the
leader builds (`model.conditioning`), and a stream of decoded frames. It does not know how tokens and
pictures are shared out, nor where frames go.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from model.io.checkpoint import Weights, load_module
from model.io.lora import Merged, read_lora
from model.io.outgoing import Sent, ahead, send
from model.io.pixels import to_bytes, to_floats
from model.parallel.mesh import ALONE, ContextParallel
from model.pipeline.conditioning import DISTILLED_LORA, REFINEMENT_LORA, Clip, Encoders, frames_of_refinement
from model.pipeline.request import Encoded, Event, Frames, Latents, Request, SegmentDone, Stepped
from model.pipeline.sample import LayOut, denoise
from model.pipeline.state import State
from model.pipeline.text_cache import Reading
from model.spec.errors import CheckpointError, InputError
from model.spec.geometry import windows
from model.spec.limits import Limits, load_limits
from model.spec.plan import Plan
from model.text import TextEncoder
from model.transformer.config import load_dit_config, load_shift
from model.transformer.dit import Dit
from model.transformer.fp8 import to_fp8
from model.transformer.step_cache import StepCache
from model.transformer.token_layout import lay_out
from model.vae.vae import LATENTS_AT_A_TIME, Vae

Steps = Generator[Event, None, State]
REMEMBERED_LAYOUTS = 8  # of the largest, one weighs under 0.1 GB


@dataclass(frozen=True)
class Pipeline:
    """A loaded checkpoint. Transformer and VAE are on every rank, the text encoder on the leader alone."""

    limits: Limits
    dit: Dit
    lora: Merged
    loras: frozenset[str]
    vae: Vae
    encoders: Encoders | None
    parallel: ContextParallel
    lay_out: LayOut = field(default_factory=lambda: lru_cache(REMEMBERED_LAYOUTS)(lay_out))
    reading: Reading = field(default_factory=Reading)

    @classmethod
    def load(
        cls, checkpoint: Path, dtype: torch.dtype, parallel: ContextParallel = ALONE, *, fp8: bool = False
    ) -> "Pipeline":
        """Load a checkpoint folder onto this rank's device (`parallel.device`); see `model.fp8` for `fp8`.

        Raises CheckpointError, naming file and tensor, GroupError where the heads cannot be shared, and
        DeviceError where the device knows no fp8.
        """
        if not checkpoint.is_dir():
            raise CheckpointError(checkpoint, "is missing, or is no folder")
        config = load_dit_config(checkpoint / "dit" / "config.json")
        parallel.check_heads(config.num_heads)
        limits = load_limits(checkpoint)
        weights = Weights(checkpoint / "dit", "diffusion_pytorch_model")
        dit = load_module(lambda: Dit(config, dtype), weights, parallel.device)
        if fp8:
            to_fp8(dit)
        loras = {
            path.stem: read_lora(path, dit) for path in sorted((checkpoint / "lora").glob("*.safetensors"))
        }
        vae = Vae.load(checkpoint, parallel.device, dtype, parallel)
        return cls(
            limits=limits,
            dit=dit,
            lora=Merged(dit, weights, loras),
            loras=frozenset(loras),
            vae=vae,
            encoders=_encoders(checkpoint, limits, vae, dtype) if parallel.is_leader else None,
            parallel=parallel,
        )

    def generate(self, request: Request, resume: State | None = None) -> Iterator[Event]:
        """Run a job, or go on with it from a state; the caller may stop between any two events.

        Ranks give the same events in the same order. Inputs and `resume` are looked at on the leader alone.
        Raises InputError where the checkpoint lacks the LoRA file that the plan needs.
        """
        self._check_loras(request.plan)
        state = self.parallel.from_leader(lambda: resume or State.begin(request.seed))
        while state.segment < request.plan.num_segments:
            state = yield from self._segment(request, state)
            yield SegmentDone(state.segment - 1, state)

    def _segment(self, request: Request, state: State) -> Steps:
        """One segment, to the state in which the next begins."""
        if request.plan.task == "refine":
            state = self._begun(request, replace(state, stage="refine"))
        elif state.stage == "denoise":
            state = yield from self._denoise(request, self._begun(request, state))
            if request.plan.refinement is None:
                return (yield from self._finish(request, state))
            state = self._refinement_begun(request, state)
        state = yield from self._denoise(request, state)
        return (yield from self._finish(request, state))

    def _begun(self, request: Request, state: State, clip: Clip | None = None) -> State:
        """The state with the latents of its stage's beginning; `clip` (on the leader) is what it refines."""
        if state.latents is not None:
            return state
        begun = self.parallel.from_leader(lambda: _present(self.encoders).begin(request, state, clip))
        latents, clean = begun.latents(self.vae)
        return replace(state, latents=latents, clean=clean, random=begun.random)

    def _refinement_begun(self, request: Request, state: State) -> State:
        """The refinement of what a segment's first stage made."""
        clip = self._decoded_whole(request, state)
        tail = None if clip is None else _end(clip, request.plan.num_condition_frames).clone()
        state = replace(state, stage="refine", step=0, latents=None, clean=None, tail=tail)
        return self._begun(request, state, clip)

    def _denoise(self, request: Request, state: State) -> Steps:
        """All steps of a stage that are still to be done, and its latents."""
        conditioning = self.parallel.from_leader(lambda: _present(self.encoders).condition(request, state))
        self.lora.switch(conditioning.lora)
        yield Encoded(state.stage, state.segment)
        threshold, whole = conditioning.step_cache, state
        steps = None if threshold is None else StepCache(threshold, self.parallel)
        read = self.reading.under(conditioning.lora)
        for x in denoise(self.dit, conditioning, self.parallel, self.lay_out, steps, read):
            if steps is not None and not steps.reused:
                whole = state  # what came before that step no longer matters
            state = replace(state, latents=x, step=state.step + 1)
            resume = state if steps is None else whole
            yield Stepped(state.stage, state.segment, state.step, conditioning.num_steps, resume)
        yield Latents(state.stage, state.segment, _whole(state))
        return state

    def _finish(self, request: Request, state: State) -> Steps:
        """Decode the last stage of a segment; hand out its frames but those that were there before."""
        plan = request.plan
        repeated = plan.repeated_frames if state.segment else 0
        first, count = 0, plan.num_frames
        if state.stage == "refine":
            lie = frames_of_refinement(plan, state.segment)
            first, count = lie.front_padding, lie.num_frames
        ours, fresh = windows(first, count), windows(first + repeated, count - repeated)
        end: Clip | None = None
        outgoing = ahead(islice(self._sent(state), len(ours)), LATENTS_AT_A_TIME)
        for our, new, (chunk, sent) in zip(ours, fresh, outgoing, strict=False):
            if chunk is not None:
                end = _end(chunk[our] if end is None else torch.cat([end, chunk[our]]), plan.repeated_frames)
            if new.start < new.stop:
                yield Frames(state.segment, None if sent is None else sent.arrived()[new])
        return self._next_segment(request, state, end)

    def _next_segment(self, request: Request, state: State, end: Clip | None) -> State:
        """The state after a segment, given the end of its finished frames."""
        if end is not None:
            end = self._handed_over(end, request)
        then = State(state.segment + 1, "denoise", 0, state.random)
        if state.stage == "refine":
            return replace(then, tail=state.tail, refined_tail=end)
        return replace(then, tail=end)

    def _decoded(self, state: State) -> Iterator[Clip | None]:
        """What a stage made, chunk by chunk, as all ranks decode it together; None for each on followers."""
        for frames in self.vae.decode(_whole(state)):
            yield frames if self.parallel.is_leader else None

    def _sent(self, state: State) -> Iterator[tuple[Clip | None, Sent | None]]:
        """The same, and on their way to the CPU."""
        for chunk in self._decoded(state):
            yield chunk, None if chunk is None else send(chunk)

    def _decoded_whole(self, request: Request, state: State) -> Clip | None:
        """The same at once; None on followers."""
        chunks = [chunk for chunk in self._decoded(state) if chunk is not None]
        return self.parallel.only_on_leader(lambda: self._handed_over(torch.cat(chunks), request))

    def _handed_over(self, frames: Clip, request: Request) -> Clip:
        """Frames as the next stage or segment is given them."""
        return to_floats(to_bytes(frames)).to(frames.device) if request.exact_handover else frames

    def _check_loras(self, plan: Plan) -> None:
        needed = {DISTILLED_LORA: plan.distilled, REFINEMENT_LORA: plan.refinement is not None}
        for name, is_needed in needed.items():
            if is_needed and name not in self.loras:
                field = "distilled" if name == DISTILLED_LORA else "refine"
                raise InputError(field, f"this checkpoint has no lora/{name}.safetensors")


def _encoders(checkpoint: Path, limits: Limits, vae: Vae, dtype: torch.dtype) -> Encoders:
    return Encoders(
        text=TextEncoder.load(checkpoint, vae.device, dtype, lasting=limits.negative_prompt),
        device=vae.device,
        latent_channels=vae.latent_channels,
        shift=load_shift(checkpoint / "scheduler" / "scheduler_config.json"),
        negative_prompt=limits.negative_prompt,
    )


def _present(encoders: Encoders | None) -> Encoders:
    assert encoders
    return encoders


def _whole(state: State) -> Float[Tensor, "1 z f h w"]:
    """Latents of all frames of a stage, condition frames first."""
    latents, clean = state.of_stage()
    return torch.cat([clean, latents], dim=2)


def _end(frames: Clip, count: int) -> Clip:
    """The last so many frames (all, if there are fewer; none, if none are asked for)."""
    return frames[max(len(frames) - count, 0) :]
