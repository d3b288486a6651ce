"""Define the events that the pipeline yields while it generates a video."""

from dataclasses import dataclass

from jaxtyping import Float, UInt8
from torch import Tensor

from model.pipeline.state import Stage, State


@dataclass(frozen=True)
class Encoded:
    """Texts and condition frames of a stage are encoded. Its steps come next."""

    stage: Stage
    segment: int


@dataclass(frozen=True)
class Stepped:
    """`step` of `num_steps` are done. The job can resume from `state`, perhaps of an earlier step."""

    stage: Stage
    segment: int
    step: int
    num_steps: int
    state: State


@dataclass(frozen=True)
class Latents:
    """The latents of a stage before the VAE: normalised, fp32, condition frames included."""

    stage: Stage
    segment: int
    latents: Float[Tensor, "1 z f h w"]


@dataclass(frozen=True)
class Frames:
    """Finished frames on the CPU of the leader, in order and without repeats. None on other ranks."""

    segment: int
    frames: UInt8[Tensor, "frames height width 3"] | None


@dataclass(frozen=True)
class SegmentDone:
    """All frames of a segment have been yielded. The next segment begins from `state`."""

    segment: int
    state: State


Event = Encoded | Stepped | Latents | Frames | SegmentDone
