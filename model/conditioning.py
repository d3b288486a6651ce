"""From a request to the conditioning of one stage: all that tells the tasks apart.

`model.pipeline` calls `Encoders.base` and `Encoders.refinement` on the leader, which alone has the text
encoder and the VAE, and sends the result to all ranks. Random numbers are drawn here and nowhere else, on
the CPU and in LongCat-Video's order: for the base video noise of the whole latent shape, then the
condition's posterior; for refinement the clip's posterior, noise, then the condition's posterior.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from model import schedule
from model.geometry import VAE_STRIDE, RefineFrames, Size, latent_frames, refine_frames
from model.pixels import padded, resized, stretched, to_floats
from model.plan import Plan, Refinement
from model.request import Request
from model.sample import Conditioning
from model.schedule import Schedule
from model.state import State
from model.text import Text, TextEncoder
from model.vae import Vae

DISTILLED_LORA, REFINEMENT_LORA = "cfg_step_lora", "refinement_lora"

Clip = Float[Tensor, "_ _ _ 3"]  # frames, height, width
Start = tuple[Float[Tensor, "1 z f h w"], Float[Tensor, "1 z k h w"]]  # noise frames, clean frames


@dataclass(frozen=True)
class Encoders:
    """What the leader alone has, the text encoder and the VAE, and what the checkpoint says beside them."""

    text: TextEncoder
    vae: Vae
    shift: float
    negative_prompt: str

    def base(self, request: Request, state: State) -> Conditioning:
        """A segment from noise: all of it, or after an image, the end of a clip, or the segment before."""
        plan, generator = request.plan, state.generator()
        continues = state.segment > 0 or request.video is not None
        latents = _resumed(state) or self._begin_base(request, state, generator)
        text = self._texts(request, state, guided=plan.guidance_scale > 1)
        return Conditioning(
            *latents,
            *text,
            *base_schedule(plan, self.shift, continues),
            random=generator.get_state(),
            guidance_scale=plan.guidance_scale,
            cache_condition=continues and plan.condition_cache,
            lora=DISTILLED_LORA if plan.distilled else None,
            first_step=state.step,
        )

    def refinement(self, request: Request, state: State, clip: Clip | None) -> Conditioning:
        """A clip's latents, noised again, after latents of the frames that it is held to.

        A stage that is resumed needs no clip.
        """
        target, generator = request.plan.refinement, state.generator()
        assert target
        latents = _resumed(state) or self._begin_refinement(request, state, clip, generator)
        text = self._texts(request, state, guided=False)
        levels = schedule.standard(target.num_inference_steps, self.shift)
        return Conditioning(
            *latents,
            *text,
            *schedule.begin_at(target.t_thresh, levels),
            random=generator.get_state(),
            lora=REFINEMENT_LORA,
            block_sparse=True,
            first_step=state.step,
        )

    def _begin_base(self, request: Request, state: State, generator: torch.Generator) -> Start:
        plan = request.plan
        sides = (plan.height // VAE_STRIDE, plan.width // VAE_STRIDE)
        shape = (1, self.vae.latent_channels, latent_frames(plan.num_frames), *sides)
        noise = torch.randn(shape, generator=generator).to(self.vae.device)
        frames = _base_condition(request, state)
        clean = noise[:, :, :0] if frames is None else self.vae.encode(frames, generator)
        return noise[:, :, clean.shape[2] :], clean

    def _begin_refinement(
        self, request: Request, state: State, clip: Clip | None, generator: torch.Generator
    ) -> Start:
        target = request.plan.refinement
        assert target
        assert clip is not None
        lie = frames_of_refinement(request.plan, state.segment)
        clip = stretched(clip.to(self.vae.device), Size(target.height, target.width), lie.num_frames)
        back = lie.padded_frames - lie.front_padding - lie.num_frames
        latents = self.vae.encode(padded(clip, lie.front_padding, back), generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        x = (1 - target.t_thresh) * latents + target.t_thresh * noise
        if not lie.num_held:
            return x, x[:, :, :0]
        held = padded(_refine_condition(request, state, target, lie), lie.front_padding, 0)
        return x[:, :, lie.condition_latents :], self.vae.encode(held, generator)

    def _texts(self, request: Request, state: State, guided: bool) -> Text:
        """The prompt; with guidance, the negative prompt before it."""
        negative = self.negative_prompt if request.negative_prompt is None else request.negative_prompt
        return self.text.encode([negative] * guided + [request.prompt(state.segment)])


def base_schedule(plan: Plan, shift: float, continues: bool) -> Schedule:
    """Noise levels of a segment; finer towards the end where it continues a clip."""
    if plan.distilled:
        return schedule.distilled(plan.num_inference_steps, shift)
    levels = schedule.standard(plan.num_inference_steps, shift)
    return schedule.enhance_hf(levels) if continues and plan.enhance_hf else levels


def frames_of_refinement(plan: Plan, segment: int) -> RefineFrames:
    """How the frames of a segment's refinement lie.

    The first segment is held to what the request gives, if anything; later ones to the end of the one before.
    """
    assert plan.refinement
    held = plan.repeated_frames if segment else plan.refinement.num_held
    return refine_frames(plan.num_frames * plan.frame_factor, held)


def _resumed(state: State) -> Start | None:
    if state.latents is None or state.clean is None:
        return None
    return state.latents, state.clean


def _base_condition(request: Request, state: State) -> Clip | None:
    """Frames that the segment begins with, if any: the last of the clip before, or an image."""
    plan = request.plan
    if state.segment:
        return state.tail
    if request.video is not None:
        given = request.video[-plan.num_condition_frames :]
    elif request.image is not None:
        given = request.image[None]
    else:
        return None
    return to_floats(resized(given, Size(plan.height, plan.width)))


def _refine_condition(request: Request, state: State, target: Refinement, lie: RefineFrames) -> Clip:
    """The frames that the first frames of a refined segment are held to."""
    if state.segment:
        assert state.refined_tail is not None
        return state.refined_tail
    given = request.condition_video if request.image is None else request.image[None]
    assert given is not None
    return to_floats(resized(given[-lie.num_held :], Size(target.height, target.width)))
