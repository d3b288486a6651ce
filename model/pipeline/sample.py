"""The denoising loop: the only one, with the only Euler line, for every task.

`model.pipeline` builds a `Conditioning` for each stage of a job (`model.conditioning`) and iterates over
`denoise`. What the tasks differ in is in that value: which frames are clean, which schedule, which
attention. It does not know of pixels, prompts, LoRA files, or how many devices share the work.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.parallel.mesh import ContextParallel
from model.pipeline.guidance import guide
from model.transformer.config import DitConfig
from model.transformer.dit import Dit, ReadText
from model.transformer.step_cache import StepCache
from model.transformer.token_layout import Layout, Window, lay_out

LayOut = Callable[[DitConfig, Window, bool, ContextParallel], Layout]
Read = Callable[[Dit, Tensor, Tensor], ReadText]  # hidden states and mask, as for `Dit.read`
Predict = Callable[[Float[Tensor, "1 z f h w"], Float[Tensor, ""]], Float[Tensor, "t z all h w"]]


@dataclass(frozen=True)
class Conditioning:
    """All that one stage of denoising needs. Latents are fp32 and normalised.

    `start` is what the noise frames begin as, from step `first_step` on; `clean` are the condition
    frames before them (perhaps none), which are never updated. Guidance is on where the text has two
    samples: the negative prompt, then the prompt. `step_cache` is the threshold of a `StepCache`, if one may
    stand in for parts of steps.
    """

    start: Float[Tensor, "1 z f h w"]
    clean: Float[Tensor, "1 z k h w"]
    text: Float[Tensor, "t l c"]
    mask: Int[Tensor, "t l"]
    timesteps: Float[Tensor, " steps"]
    sigmas: Float[Tensor, " levels"]
    guidance_scale: float = 1.0
    cache_condition: bool = False
    block_sparse: bool = False
    step_cache: float | None = None
    lora: str | None = None
    first_step: int = 0

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return len(self.timesteps)


def denoise(
    dit: Dit,
    conditioning: Conditioning,
    parallel: ContextParallel,
    lay_out: LayOut = lay_out,
    steps: StepCache | None = None,
    read: Read = Dit.read,
) -> Iterator[Float[Tensor, "1 z f h w"]]:
    """Step from noise to latents; yields the noise frames after each step.

    Nothing is read back from the device on the way, but by `steps`, which may compute steps in part.
    `lay_out` and `read` may remember what they gave.
    """
    sharing = parallel.for_texts(len(conditioning.text))
    predict = _guided(_predictor(dit, conditioning, sharing, lay_out, steps, read), conditioning)
    timesteps, sigmas = conditioning.timesteps, conditioning.sigmas
    x = conditioning.start
    for step in range(conditioning.first_step, conditioning.num_steps):
        velocity = predict(x, timesteps[step])
        x = x - (sigmas[step + 1] - sigmas[step]) * velocity
        yield x


def _guided(predict: Predict, conditioning: Conditioning) -> Predict:
    """Of the transformer's prediction for each text, one velocity for the noise frames."""
    num_frames = conditioning.start.shape[2]

    def guided(x: Float[Tensor, "1 z f h w"], timestep: Float[Tensor, ""]) -> Float[Tensor, "1 z f h w"]:
        velocity = predict(x, timestep)
        if len(velocity) > 1:
            unconditional, conditional = velocity.chunk(2)
            velocity = guide(unconditional, conditional, conditioning.guidance_scale)
        return velocity[:, :, -num_frames:]

    return guided


def _predictor(
    dit: Dit,
    conditioning: Conditioning,
    parallel: ContextParallel,
    lay_out: LayOut,
    steps: StepCache | None,
    read: Read,
) -> Predict:
    """The transformer over all frames, or over the noise frames with the clean ones remembered."""
    clean, (num_clean, height, width) = conditioning.clean, conditioning.clean.shape[2:]
    num_noise = conditioning.start.shape[2]
    hidden, mask = parallel.share_texts(conditioning.text), parallel.share_texts(conditioning.mask)
    num_texts, text = len(hidden), read(dit, hidden, mask)
    cached = conditioning.cache_condition and num_clean > 0
    past = None
    if cached:
        past = dit.remember(clean, lay_out(dit.config, Window(num_clean, height, width), False, parallel))
        window = Window(num_noise, height, width, first=num_clean)
    else:
        window = Window(num_clean + num_noise, height, width, num_condition=num_clean)
    layout = lay_out(dit.config, window, conditioning.block_sparse, parallel)

    def predict(x: Float[Tensor, "1 z f h w"], timestep: Float[Tensor, ""]) -> Float[Tensor, "t z all h w"]:
        timesteps = timestep.expand(num_texts, num_noise)
        if num_clean and not cached:
            x = torch.cat([clean, x], dim=2)
            timesteps = torch.cat([timesteps.new_zeros(num_texts, num_clean), timesteps], dim=1)
        velocity: Tensor = dit(x.expand(num_texts, -1, -1, -1, -1), timesteps, layout, text, past, steps)
        return parallel.gather_texts(velocity)

    return predict
