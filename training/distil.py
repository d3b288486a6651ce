"""Fifth stage: a LoRA that needs no guidance, and so half the forwards, in half the steps.

`python -m training.distil RUN CHECKPOINT` trains `cfg_step_lora`: from every noise level of the distilled
schedule the changed transformer goes in one step, without guidance, as far as the unchanged one goes in two
with it.
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
from training.flow import SHIFT, Batch, Noised, noise_like, noised, predicted, stepped, velocity_error
from training.latents import Clips
from training.reader import Reader
from training.stage import stage
from training.transformer import Selection, pick, trainable

STEPS, BATCH = 800, 10


@dataclass(frozen=True)
class Lesson:
    """Who teaches, with which guidance, between which noise levels (the last is 0), and who learns."""

    teacher: Dit
    student: Dit
    empty: Text
    guidance_scale: float
    sigmas: Float[Tensor, " levels"]

    def loss(self, batch: Batch, random: np.random.Generator) -> Float[Tensor, ""]:
        """How far the student's step is from the teacher's two; levels are as even as can be in a batch."""
        levels = torch.from_numpy(random.permutation(len(batch.latents)) % (len(self.sigmas) - 1))
        begin, end = self.sigmas[levels], self.sigmas[levels + 1]
        seen = noised(batch, noise_like(batch.latents, random), begin)
        with torch.no_grad():
            first = self.guided(seen, batch.text)
            second = self.guided(stepped(seen, first, (begin + end) / 2), batch.text)
        return velocity_error(predicted(self.student, seen, batch.text), (first + second) / 2)

    def guided(self, seen: Noised, text: Text) -> Float[Tensor, "b c f h w"]:
        """What the teacher says, with guidance."""
        nothing = Text(*(part.expand(len(seen.x), *part.shape[1:]) for part in self.empty))
        without, with_text = (predicted(self.teacher, seen, told) for told in (nothing, text))
        return guide(without, with_text, self.guidance_scale)


def main() -> None:
    """Train, resuming where the last run stopped, and write the LoRA file."""
    told = stage("distil", __doc__, STEPS)
    limits, reader = load_limits(told.checkpoint), Reader.load(told.checkpoint, told.device)
    sigmas = schedule.distilled(limits.distilled_num_inference_steps, SHIFT).sigmas.to(told.device)
    teacher, student = (load_dit(told.checkpoint, told.device) for _ in range(2))
    changes = lora.attach(trainable(student)).to(told.device)
    lesson = Lesson(teacher, student, reader.read([""]), limits.guidance_scale, sigmas)
    clips = Clips.open(told.run)
    lora.train(
        told, changes, lambda random: lesson.loss(pick(clips, reader, random, Selection(BATCH)), random)
    )
    lora.save(changes, told.checkpoint / "lora" / "cfg_step_lora.safetensors")


if __name__ == "__main__":
    main()
