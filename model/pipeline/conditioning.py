"""Build the conditioning of a stage from a request. This is all in which the tasks differ.

Only the leader has the text encoder and the inputs; it sends the results to the other ranks. All random
numbers are drawn here, on the CPU and in LongCat-Video's order: for the base video noise for all latents,
then the posterior of the condition frames; for refinement the posterior of the clip, noise, then the
posterior of the condition frames.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.io.pixels import Pixels, resized
from model.parallel.mesh import ContextParallel
from model.pipeline import schedule
from model.pipeline.leader_clip import LeaderClip
from model.pipeline.request import Request
from model.pipeline.sample import Conditioning
from model.pipeline.schedule import Schedule
from model.pipeline.state import State
from model.spec.geometry import VAE_STRIDE, RefineLayout, Size, latent_frames
from model.spec.plan import Plan, Refinement, refine_layout_of
from model.text import Text, TextEncoder
from model.vae.vae import Vae

Latents = Float[Tensor, "1 z _ h w"]


@dataclass(frozen=True)
class StageInputs:
    """The noise and frames that a stage begins with, before the VAE.

    Attributes:
        noise: noise for all latents of the stage.
        random: state of the generator after all draws.
        condition: condition frames, if any; their latents replace the first frames.
        condition_noise: noise for the posterior of `condition`.
        clip: the clip to refine, if any; its latents are mixed with noise.
        clip_noise: noise for the posterior of `clip`.
        noise_level: the fraction of noise in the mixture.
    """

    noise: Latents
    random: UInt8[Tensor, " bytes"]
    condition: LeaderClip | None = None
    condition_noise: Latents | None = None
    clip: LeaderClip | None = None
    clip_noise: Latents | None = None
    noise_level: float = 1.0

    def encode(self, vae: Vae, parallel: ContextParallel) -> tuple[Latents, Latents]:
        """Return the latents of the noise frames, and the clean latents before them."""
        x = self.noise
        if self.clip is not None and self.clip_noise is not None:
            encoded = vae.sample(partial(self.clip.read, parallel), self.clip_noise)
            x = (1 - self.noise_level) * encoded + self.noise_level * self.noise
        clean = x[:, :, :0]
        if self.condition is not None and self.condition_noise is not None:
            clean = vae.sample(partial(self.condition.read, parallel), self.condition_noise)
        return x[:, :, clean.shape[2] :], clean


@dataclass(frozen=True)
class Conditioner:
    """Prepare the stages of a request: what each begins with, and its conditioning. Only the leader has one.

    Attributes:
        text: the text encoder.
        latent_channels: the channels of the noise.
        shift: the shift of the noise levels.
        negative_prompt: used where a request has none.
    """

    text: TextEncoder
    latent_channels: int
    shift: float
    negative_prompt: str

    def stage_inputs(self, request: Request, state: State, clip: Pixels | None) -> StageInputs:
        """Return the noise and frames that the stage of `state` begins with; `clip` is what it refines."""
        if state.stage == "denoise":
            return self._base_inputs(request, state)
        assert clip is not None
        return self._refinement_inputs(request, state, clip)

    def conditioning(self, request: Request, state: State) -> Conditioning:
        """Return the conditioning of the stage of `state`, which has begun."""
        if state.stage == "denoise":
            return self._base_conditioning(request, state)
        return self._refinement_conditioning(request, state)

    def _base_conditioning(self, request: Request, state: State) -> Conditioning:
        """Condition a segment of the base video: from noise alone, or after an image, a clip or a segment."""
        plan = request.plan
        is_continuation = state.segment > 0 or request.video is not None
        return Conditioning(
            *state.stage_latents(),
            *self._encode_texts(request, state, guided=plan.guidance_scale > 1),
            *base_schedule(plan, self.shift, is_continuation),
            guidance_scale=plan.guidance_scale,
            cache_condition=is_continuation and plan.condition_cache,
            step_cache=plan.step_cache,
            lora=plan.stage_loras[0],
            first_step=state.step,
        )

    def _refinement_conditioning(self, request: Request, state: State) -> Conditioning:
        """Condition a refinement: latents of a clip, mixed with noise, after those of condition frames."""
        refinement = request.plan.refinement
        assert refinement
        levels = schedule.standard(refinement.num_inference_steps, self.shift)
        return Conditioning(
            *state.stage_latents(),
            *self._encode_texts(request, state, guided=False),
            *schedule.begin_at(refinement.t_thresh, levels),
            lora=request.plan.stage_loras[-1],
            block_sparse=True,
            first_step=state.step,
        )

    def _base_inputs(self, request: Request, state: State) -> StageInputs:
        plan, generator = request.plan, state.generator()
        noise = self._draw(plan.num_frames, Size(plan.height, plan.width), generator)
        condition = _base_condition(request, state)
        condition_noise = None if condition is None else self._draw_for(condition, generator)
        return StageInputs(noise, generator.get_state(), condition, condition_noise)

    def _refinement_inputs(self, request: Request, state: State, source: Pixels) -> StageInputs:
        refinement, generator = request.plan.refinement, state.generator()
        assert refinement
        layout = refine_layout_of(request.plan, state.segment)
        size = Size(refinement.height, refinement.width)
        back = layout.padded_frames - layout.front_padding - layout.num_frames
        clip = LeaderClip.stretched(source, size, layout.num_frames).padded(layout.front_padding, back)
        clip_noise, noise = self._draw_for(clip, generator), self._draw_for(clip, generator)
        condition = _refine_condition(request, state, refinement, layout)
        return StageInputs(
            noise=noise,
            condition=condition,
            condition_noise=None if condition is None else self._draw_for(condition, generator),
            clip=clip,
            clip_noise=clip_noise,
            noise_level=refinement.t_thresh,
            random=generator.get_state(),
        )

    def _draw_for(self, clip: LeaderClip, generator: torch.Generator) -> Latents:
        return self._draw(len(clip.positions), clip.size, generator)

    def _draw(self, num_frames: int, size: Size, generator: torch.Generator) -> Latents:
        """Draw noise for the latents of a clip with this length and size."""
        sides = (side // VAE_STRIDE for side in size)
        return torch.randn(1, self.latent_channels, latent_frames(num_frames), *sides, generator=generator)

    def _encode_texts(self, request: Request, state: State, guided: bool) -> Text:
        """Encode the prompt and, with guidance, the negative prompt before it."""
        prompts = [request.prompt(state.segment)]
        if guided:
            default = self.negative_prompt
            prompts.insert(0, default if request.negative_prompt is None else request.negative_prompt)
        return self.text.encode(prompts)


def base_schedule(plan: Plan, shift: float, is_continuation: bool) -> Schedule:
    """Return the schedule of a segment; a continuation may have more steps at low noise (`enhance_hf`)."""
    if plan.distilled:
        return schedule.distilled(plan.num_inference_steps, shift)
    levels = schedule.standard(plan.num_inference_steps, shift)
    return schedule.enhance_hf(levels) if is_continuation and plan.enhance_hf else levels


def _base_condition(request: Request, state: State) -> LeaderClip | None:
    """Return the condition frames of a segment, if any: the end of what it continues, or an image."""
    plan = request.plan
    if state.segment:
        return None if state.tail is None else LeaderClip.unchanged(state.tail)
    if request.video is not None:
        frames = request.video[-plan.num_condition_frames :]
    elif request.image is not None:
        frames = request.image[None]
    else:
        return None
    return LeaderClip.unchanged(resized(frames, Size(plan.height, plan.width)))


def _refine_condition(
    request: Request, state: State, refinement: Refinement, layout: RefineLayout
) -> LeaderClip | None:
    """Return the padded condition frames of a refined segment, if any."""
    if not layout.num_held:
        return None
    condition: Pixels | None = state.refined_tail
    if not state.segment:
        frames = request.condition_video if request.image is None else request.image[None]
        assert frames is not None
        size = Size(refinement.height, refinement.width)
        condition = resized(frames[-layout.num_held :], size)
    assert condition is not None
    return LeaderClip.unchanged(condition).padded(layout.front_padding, 0)
