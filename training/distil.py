"""Fifth stage: a LoRA that needs no guidance, and so half the forwards, in few steps.

`python -m training.distil RUN CHECKPOINT` trains `cfg_step_lora`: wherever the sampler may be, the changed
transformer predicts what the unchanged one predicts with guidance, at the noise levels of the distilled
schedule.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model import schedule
from model.dit import Dit
from model.guidance import guide
from model.limits import load_limits
from model.text import Text
from training import lora
from training.checkpoint import load_dit
from training.flow import SHIFT, Batch, noise_like, noised, predicted
from training.latents import Clips
from training.reader import Reader
from training.stage import stage
from training.transformer import pick, trainable

STEPS = 1500


@dataclass(frozen=True)
class Lesson:
    """Who teaches, with which guidance, at which noise levels, and who learns."""

    teacher: Dit
    student: Dit
    empty: Text
    guidance_scale: float
    sigmas: Float[Tensor, " levels"]

    def loss(self, batch: Batch, random: np.random.Generator) -> Float[Tensor, ""]:
        """How far the student's prediction is from the teacher's guided one."""
        levels = random.integers(len(self.sigmas), size=len(batch.latents))
        seen = noised(batch, noise_like(batch.latents, random), self.sigmas[torch.from_numpy(levels)])
        with torch.no_grad():
            nothing = Text(*(part.expand(len(levels), *part.shape[1:]) for part in self.empty))
            without, with_text = (predicted(self.teacher, seen, text) for text in (nothing, batch.text))
            wanted = guide(without, with_text, self.guidance_scale)
        return (predicted(self.student, seen, batch.text) - wanted).square().mean()


def main() -> None:
    """Train, resuming where the last run stopped, and write the LoRA file."""
    told = stage("distil", __doc__, STEPS)
    limits, reader = load_limits(told.checkpoint), Reader.load(told.checkpoint, told.device)
    levels = schedule.distilled(limits.distilled_num_inference_steps, SHIFT).sigmas[:-1]
    teacher, student = (load_dit(told.checkpoint, told.device) for _ in range(2))
    changes = lora.attach(trainable(student)).to(told.device)
    lesson = Lesson(teacher, student, reader.read([""]), limits.guidance_scale, levels.to(told.device))
    clips = Clips.open(told.run)
    lora.train(told, changes, lambda random: lesson.loss(pick(clips, reader, random), random))
    lora.save(changes, told.checkpoint / "lora" / "cfg_step_lora.safetensors")


if __name__ == "__main__":
    main()
