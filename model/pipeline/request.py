"""What a job is asked for, and what happens while it runs.

A caller of `model.pipeline` (the command line, a worker's rank) makes a `Request` and is given events.
"""

from dataclasses import dataclass

from jaxtyping import Float, UInt8
from torch import Tensor

from model.pipeline.state import Stage, State
from model.spec.plan import Plan


@dataclass(frozen=True)
class Request:
    """A settled plan with its prompts and inputs. The inputs are needed on the leader alone.

    One prompt, or one for each segment. No negative prompt means the checkpoint's default, where
    guidance is on. `exact_handover` cuts frames to 8 bits between stages and segments, as the published
    code does.
    """

    plan: Plan
    prompts: tuple[str, ...]
    seed: int
    negative_prompt: str | None = None
    image: UInt8[Tensor, "height width 3"] | None = None
    video: UInt8[Tensor, "n height2 width2 3"] | None = None
    condition_video: UInt8[Tensor, "k height3 width3 3"] | None = None
    exact_handover: bool = False

    def prompt(self, segment: int) -> str:
        """The prompt of this segment."""
        return self.prompts[segment] if len(self.prompts) > 1 else self.prompts[0]


@dataclass(frozen=True)
class Encoded:
    """Text and conditions of a stage are encoded; its steps begin."""

    stage: Stage
    segment: int


@dataclass(frozen=True)
class Stepped:
    """`step` of `num_steps` are done; the job can go on from `state`, which may lie before that step."""

    stage: Stage
    segment: int
    step: int
    num_steps: int
    state: State


@dataclass(frozen=True)
class Latents:
    """A stage's normalised latents, fp32, condition frames included, before the VAE."""

    stage: Stage
    segment: int
    latents: Float[Tensor, "1 z f h w"]


@dataclass(frozen=True)
class Frames:
    """Finished frames on the leader's CPU, in order and without repeats; None on other ranks."""

    segment: int
    frames: UInt8[Tensor, "n height width 3"] | None


@dataclass(frozen=True)
class SegmentDone:
    """All frames of a segment have come; the next goes on from `state`."""

    segment: int
    state: State


Event = Encoded | Stepped | Latents | Frames | SegmentDone
