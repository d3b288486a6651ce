"""Stage 5: distil guidance and half of the steps into a LoRA.

`python -m training.distil RUN CHECKPOINT` trains `cfg_step_lora`. From each noise level of the distilled
schedule, one step of the student without guidance has to reach what two steps of the teacher with guidance
reach. The student is the same transformer with the LoRA.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.pipeline import schedule
from model.pipeline.guidance import guide
from model.spec.limits import load_limits
from model.text import Text
from model.transformer.dit import Dit
from training import lora
from training.checkpoint import load_dit
from training.encoders import FrozenEncoders
from training.flow_matching import (
    SHIFT,
    Batch,
    NoisyLatents,
    add_noise,
    euler_step,
    normal_like,
    predict_velocity,
    velocity_loss,
)
from training.latents import LatentDataset
from training.stage import parse_options
from training.transformer import BatchSpec, sample_batch, trainable

STEPS, BATCH = 800, 10


@dataclass(frozen=True)
class Distillation:
    """Hold teacher and student, the teacher's guidance, and the noise levels of the steps (the last is 0)."""

    teacher: Dit
    student: Dit
    empty: Text
    guidance_scale: float
    sigmas: Float[Tensor, " levels"]

    def loss(self, batch: Batch, random: np.random.Generator) -> Float[Tensor, ""]:
        """Return the error of the student's step against two steps of the teacher.

        The levels of a batch are spread as evenly as possible over the schedule.
        """
        levels = torch.from_numpy(random.permutation(len(batch.latents)) % (len(self.sigmas) - 1))
        begin, end = self.sigmas[levels], self.sigmas[levels + 1]
        noisy = add_noise(batch, normal_like(batch.latents, random), begin)
        with torch.no_grad():
            first = self.guided(noisy, batch.text)
            second = self.guided(euler_step(noisy, first, (begin + end) / 2), batch.text)
        return velocity_loss(predict_velocity(self.student, noisy, batch.text), (first + second) / 2)

    def guided(self, noisy: NoisyLatents, text: Text) -> Float[Tensor, "b c f h w"]:
        """Return the teacher's velocity with guidance."""
        nothing = Text(*(part.expand(len(noisy.x), *part.shape[1:]) for part in self.empty))
        without, with_text = (
            predict_velocity(self.teacher, noisy, condition) for condition in (nothing, text)
        )
        return guide(without, with_text, self.guidance_scale)


def main() -> None:
    """Train, resuming where the last run stopped, and write the LoRA file."""
    options = parse_options("distil", __doc__, STEPS)
    limits, encoders = (
        load_limits(options.checkpoint),
        FrozenEncoders.load(options.checkpoint, options.device),
    )
    sigmas = schedule.distilled(limits.distilled_num_inference_steps, SHIFT).sigmas.to(options.device)
    teacher, student = (load_dit(options.checkpoint, options.device) for _ in range(2))
    updates = lora.attach(trainable(student)).to(options.device)
    distillation = Distillation(teacher, student, encoders.encode_text([""]), limits.guidance_scale, sigmas)
    dataset = LatentDataset.open(options.run)
    lora.train(
        options,
        updates,
        lambda random: distillation.loss(sample_batch(dataset, encoders, random, BatchSpec(BATCH)), random),
    )
    lora.save(updates, options.checkpoint / "lora" / "cfg_step_lora.safetensors")


if __name__ == "__main__":
    main()
