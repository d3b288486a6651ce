"""From a request to the conditioning of one stage: all that tells the tasks apart.

`model.pipeline` asks the `Encoders` of the leader, which alone has the text encoder and the inputs, for a
stage's `Beginning` (noise, and frames that all ranks then encode together) and for its `Conditioning`, and
sends both to all ranks. Random numbers are drawn here and nowhere else, on the CPU and in LongCat-Video's
order: for the base video noise of the whole latent shape, then the condition's posterior; for refinement the
clip's posterior, noise, then the condition's posterior.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.io.pixels import padded, resized, stretched, to_floats
from model.pipeline import schedule
from model.pipeline.request import Request
from model.pipeline.sample import Conditioning
from model.pipeline.schedule import Schedule
from model.pipeline.state import State
from model.spec.geometry import VAE_STRIDE, RefineFrames, Size, latent_frames, refine_frames
from model.spec.plan import Plan, Refinement
from model.text import Text, TextEncoder
from model.vae.vae import Vae

DISTILLED_LORA, REFINEMENT_LORA = "cfg_step_lora", "refinement_lora"

Clip = Float[Tensor, "_ _ _ 3"]  # frames, height, width
Latents = Float[Tensor, "1 z _ h w"]


@dataclass(frozen=True)
class Beginning:
    """What a stage begins with, before the VAE; floats in [0, 1].

    `clip`, if any, is encoded and noised up to `level`; `held`, if any, is encoded and takes the place of the
    first frames. The draws are those of their posteriors; `random` is the generator's state after all draws.
    """

    noise: Latents
    random: UInt8[Tensor, " bytes"]
    held: Clip | None = None
    held_draw: Latents | None = None
    clip: Clip | None = None
    clip_draw: Latents | None = None
    level: float = 1.0

    def latents(self, vae: Vae) -> tuple[Latents, Latents]:
        """The noise frames, and the clean ones before them."""
        x = self.noise
        if self.clip is not None and self.clip_draw is not None:
            x = (1 - self.level) * vae.sample(self.clip, self.clip_draw) + self.level * self.noise
        clean = x[:, :, :0]
        if self.held is not None and self.held_draw is not None:
            clean = vae.sample(self.held, self.held_draw)
        return x[:, :, clean.shape[2] :], clean


@dataclass(frozen=True)
class Encoders:
    """What the leader alone has, the text encoder, and what the checkpoint says beside it."""

    text: TextEncoder
    device: torch.device
    latent_channels: int
    shift: float
    negative_prompt: str

    def begin(self, request: Request, state: State, clip: Clip | None) -> Beginning:
        """The noise and the frames that the stage of this state begins with; `clip` is what it refines."""
        if state.stage == "denoise":
            return self._begin_base(request, state)
        given = to_floats(request.video) if clip is None and request.video is not None else clip
        assert given is not None
        return self._begin_refinement(request, state, given)

    def condition(self, request: Request, state: State) -> Conditioning:
        """The conditioning of the stage of this state, whose latents are there."""
        return self._base(request, state) if state.stage == "denoise" else self._refinement(request, state)

    def _base(self, request: Request, state: State) -> Conditioning:
        """A segment from noise: all of it, or after an image, the end of a clip, or the segment before."""
        plan = request.plan
        continues = state.segment > 0 or request.video is not None
        return Conditioning(
            *state.of_stage(),
            *self._texts(request, state, guided=plan.guidance_scale > 1),
            *base_schedule(plan, self.shift, continues),
            guidance_scale=plan.guidance_scale,
            cache_condition=continues and plan.condition_cache,
            step_cache=plan.step_cache,
            lora=DISTILLED_LORA if plan.distilled else None,
            first_step=state.step,
        )

    def _refinement(self, request: Request, state: State) -> Conditioning:
        """A clip's latents, noised again, after latents of the frames that it is held to."""
        target = request.plan.refinement
        assert target
        levels = schedule.standard(target.num_inference_steps, self.shift)
        return Conditioning(
            *state.of_stage(),
            *self._texts(request, state, guided=False),
            *schedule.begin_at(target.t_thresh, levels),
            lora=REFINEMENT_LORA,
            block_sparse=True,
            first_step=state.step,
        )

    def _begin_base(self, request: Request, state: State) -> Beginning:
        plan, generator = request.plan, state.generator()
        noise = self._drawn(plan.num_frames, Size(plan.height, plan.width), generator)
        held = _base_condition(request, state)
        draw = None if held is None else self._drawn_for(held, generator)
        return Beginning(noise, generator.get_state(), held, draw)

    def _begin_refinement(self, request: Request, state: State, clip: Clip) -> Beginning:
        target, generator = request.plan.refinement, state.generator()
        assert target
        lie = frames_of_refinement(request.plan, state.segment)
        clip = stretched(clip.to(self.device), Size(target.height, target.width), lie.num_frames)
        back = lie.padded_frames - lie.front_padding - lie.num_frames
        clip = padded(clip, lie.front_padding, back)
        clip_draw, noise = self._drawn_for(clip, generator), self._drawn_for(clip, generator)
        held = _refine_condition(request, state, target, lie)
        return Beginning(
            noise=noise,
            held=held,
            held_draw=None if held is None else self._drawn_for(held, generator),
            clip=clip,
            clip_draw=clip_draw,
            level=target.t_thresh,
            random=generator.get_state(),
        )

    def _drawn_for(self, clip: Clip, generator: torch.Generator) -> Latents:
        return self._drawn(len(clip), Size(*clip.shape[1:3]), generator)

    def _drawn(self, num_frames: int, size: Size, generator: torch.Generator) -> Latents:
        """A draw for each latent of so many frames of this size."""
        sides = (side // VAE_STRIDE for side in size)
        return torch.randn(1, self.latent_channels, latent_frames(num_frames), *sides, generator=generator)

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


def _refine_condition(request: Request, state: State, target: Refinement, lie: RefineFrames) -> Clip | None:
    """The frames that the first frames of a refined segment are held to, if any, with their padding."""
    if not lie.num_held:
        return None
    held = state.refined_tail
    if not state.segment:
        given = request.condition_video if request.image is None else request.image[None]
        assert given is not None
        held = to_floats(resized(given[-lie.num_held :], Size(target.height, target.width)))
    assert held is not None
    return padded(held, lie.front_padding, 0)
